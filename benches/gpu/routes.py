"""Routes: the ways to run a network, each a function from the network and an input to a run that can be timed.

Every run takes its input from ordinary host memory and leaves its answer there, as a server does. Our routes are
sessions of the server itself. TF32 is off in all of them: it would differ by about 1e-3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from benches.gpu.networks import Array, Subject

from normfold.serving.process.cpus import available_cpus
from normfold.serving.runtime.cuda_options import GRAPH
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings

Run = Callable[[], Array]
Route = Callable[[Subject, Array], Run]


class NoRouteError(Exception):
    """A route does not exist for this network; the message says why."""


def on_cpu(subject: Subject, x: Array) -> Run:
    """The published form on all CPUs."""
    settings = SessionSettings(intra_op_threads=available_cpus())
    return _ours(subject.forms[subject.published], Device("cpu"), settings, x)


def on_cuda(subject: Subject, x: Array) -> Run:
    """The published form, with the dynamic dimensions that it has."""
    return _ours(subject.forms[subject.published], Device("cuda"), SessionSettings(), x)


def form_on_cuda(form: str) -> Route:
    """Return the route of one of our forms on CUDA; none where this form is the published one."""

    def route(subject: Subject, x: Array) -> Run:
        if form == subject.published:
            raise NoRouteError("the published form is this one")
        return _ours(subject.forms[form], Device("cuda"), SessionSettings(), x)

    return route


def cuda_graph(subject: Subject, x: Array) -> Run:
    """The published form with fixed shapes, recorded as a CUDA graph."""
    settings = SessionSettings(cuda_options=((GRAPH, "1"),))
    return _ours(fixed(subject.forms[subject.published], x), Device("cuda"), settings, x)


def tensorrt(subject: Subject, x: Array) -> Run:
    """The published form with fixed shapes, on TensorRT."""
    return _ours(fixed(subject.forms[subject.published], x), Device("tensorrt"), SessionSettings(), x)


def _ours(content: bytes, device: Device, settings: SessionSettings, x: Array) -> Run:
    session = Session(content, device, settings)
    feeds, outputs = {session.inputs[0].name: x}, [session.outputs[0].name]
    return lambda: session.run(feeds, outputs)[0]


def fixed(content: bytes, x: Array) -> bytes:
    """Return the graph with the shape of ``x`` as that of its input, and its answer's shape as that of its output."""
    session = Session(content, Device("cpu"), SessionSettings())
    answer = session.run({session.inputs[0].name: x}, [session.outputs[0].name])[0]
    model = onnx.load_model_from_string(content)
    for value, array in ((model.graph.input[0], x), (model.graph.output[0], answer)):
        value.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
        for size in array.shape:
            value.type.tensor_type.shape.dim.add(dim_value=size)
    del model.graph.value_info[:]
    data: bytes = model.SerializeToString()
    return data


def eager(device: str) -> Route:
    """Return the route of PyTorch as it is, on "cpu" or on "cuda"."""
    return lambda subject, x: _torch(copy.deepcopy(subject.module).to(device), device, x)


def compiled(device: str, mode: str) -> Route:
    """Return the route of torch.compile with frozen weights, for one shape; ``mode`` is torch.compile's."""

    def route(subject: Subject, x: Array) -> Run:
        import torch
        import torch._inductor.config

        torch._inductor.config.freezing = True
        torch._dynamo.reset()
        module = copy.deepcopy(subject.module).to(device)
        run = _torch(torch.compile(module, dynamic=False, mode=mode), device, x)
        for _ in range(3):  # a mode with CUDA graphs records in its second and third run
            run()
        return run

    return route


def _torch(module: Any, device: str, x: Array) -> Run:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(available_cpus())

    def run() -> Array:
        with torch.inference_mode():
            answer: Array = module(torch.from_numpy(x).to(device)).cpu().numpy()
            return np.array(answer) if device == "cpu" else answer

    return run


CPU, CPU_EAGER = "CPU", "eager on the CPU"
CUDA, FOLDED, UNFOLDED, GRAPHS, TENSORRT = "CUDA", "CUDA, folded", "CUDA, unfolded", "CUDA graphs", "TensorRT"
EAGER, COMPILED, COMPILED_GRAPHS = "eager", "compile", "compile, CUDA graphs"
ON_CPU: dict[str, Route] = {CPU: on_cpu, CPU_EAGER: eager("cpu")}
#: In the order of the table, and of the measurement: those that take longest to make are the last.
ROUTES: dict[str, Route] = {
    **ON_CPU,
    CUDA: on_cuda,
    FOLDED: form_on_cuda("folded"),
    UNFOLDED: form_on_cuda("unfolded"),
    GRAPHS: cuda_graph,
    EAGER: eager("cuda"),
    TENSORRT: tensorrt,
    COMPILED: compiled("cuda", "default"),
    COMPILED_GRAPHS: compiled("cuda", "reduce-overhead"),
}
#: These may take minutes to make: they are left out where too little time is left.
SLOW = (TENSORRT, COMPILED, COMPILED_GRAPHS)
#: The least that must be right and timed; other routes may be missing, with their reasons.
MAIN = (CPU, CUDA)
