"""Routes: the tools that a user can run a network with, each as a function from the network to a run that can be timed.

A route gets a number of threads, and uses no more than these, and the shape of the input. It returns a function that
binds an input and returns the run. Only the run is timed: it converts no arrays, and copies none if the tool need not.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benches.folding import routes as simplifiers
from benches.folding.measure import session
from benches.folding.openvino_route import OpenVino
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[Any]
Run = Callable[[], Any]
Bind = Callable[[Array], Run]
#: torch.compile is given up after this time.
COMPILE_SECONDS = 90


@dataclass
class Subject:
    """One network, as all that routes start from."""

    name: str
    module: nn.Module
    #: torch's default export.
    exported: Path
    #: Our variants, and the name of the one that would be published.
    forms: dict[str, bytes]
    published: str
    #: The files that the simplifiers wrote; each is made when it is first needed.
    simplified: dict[str, bytes] = field(default_factory=dict)


#: From the network, the number of threads and the input's shape, which some routes compile for.
Route = Callable[[Subject, int, tuple[int, ...]], Bind]


def eager(subject: Subject, threads: int, shape: tuple[int, ...]) -> Bind:
    return _torch(subject.module, threads)


def compiled(subject: Subject, threads: int, shape: tuple[int, ...]) -> Bind:
    """torch.compile with frozen weights, for one shape."""
    import copy

    import torch
    import torch._inductor.config

    torch.set_num_threads(threads)  # torch.compile writes kernels for this number of threads
    torch._inductor.config.freezing = True
    torch._dynamo.reset()
    fast = torch.compile(copy.deepcopy(subject.module), dynamic=False)
    with within(COMPILE_SECONDS), torch.inference_mode():
        fast(torch.zeros(shape))
    return _torch(fast, threads)


def _torch(module: Any, threads: int) -> Bind:
    import torch

    def bind(x: Array) -> Run:
        torch.set_num_threads(threads)
        given = torch.from_numpy(x)

        def run() -> Any:
            with torch.inference_mode():
                return module(given)

        return run

    return bind


def torch_export(subject: Subject, threads: int, shape: tuple[int, ...]) -> Bind:
    return onnxruntime(subject.exported.read_bytes(), threads)


def onnxsim(subject: Subject, threads: int, shape: tuple[int, ...]) -> Bind:
    return onnxruntime(_simplified(subject, "onnxsim"), threads)


def onnxslim(subject: Subject, threads: int, shape: tuple[int, ...]) -> Bind:
    return onnxruntime(_simplified(subject, "onnxslim"), threads)


def _simplified(subject: Subject, name: str) -> bytes:
    if name not in subject.simplified:
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "model.onnx"
            simplifiers.ROUTES[name](subject.exported, target)
            subject.simplified[name] = target.read_bytes()
    return subject.simplified[name]


def form(name: str) -> Route:
    """Return the route of one of our variants."""

    def route(subject: Subject, threads: int, shape: tuple[int, ...]) -> Bind:
        return onnxruntime(subject.forms[name], threads)

    return route


def onnxruntime(content: bytes, threads: int) -> Bind:
    """A session with onnxruntime's default settings, except for the threads."""
    run = session(content, optimise=True, threads=threads)
    name = run.get_inputs()[0].name
    return lambda x: lambda: run.run(None, {name: x})[0]


def openvino(subject: Subject, threads: int, shape: tuple[int, ...]) -> Bind:
    """OpenVINO with the file's dynamic dimensions."""
    return _openvino(OpenVino(subject.exported, threads))


def openvino_fixed(subject: Subject, threads: int, shape: tuple[int, ...]) -> Bind:
    """OpenVINO compiled for one shape."""
    return _openvino(OpenVino(subject.exported, threads, shape))


def _openvino(network: OpenVino) -> Bind:
    return lambda x: lambda: network.infer(x)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the body after ``seconds``."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


EAGER, COMPILED, EXPORTED, FIXED = "eager", "compile", "torch export", "OpenVINO fixed"
#: The routes of other tools, in the order of the tables.
PEERS: dict[str, Route] = {
    EAGER: eager,
    COMPILED: compiled,
    EXPORTED: torch_export,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "OpenVINO": openvino,
    FIXED: openvino_fixed,
}


def as_array(answer: Any) -> Array:
    """Return a copy of what a run returned."""
    return np.array(answer)
