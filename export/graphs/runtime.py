"""Run a graph in onnxruntime, on one thread of the CPU by default, as proof and timing need it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from normfold.export.errors import ExportError
from normfold.export.user_code import first_line

__all__ = ["CPU", "Runtime", "providers_here"]

Arrays = dict[str, NDArray[Any]]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class Runtime:
    """One ONNX graph loaded from ``content``.

    optimised False: the graph runs as it is written, because onnxruntime's optimiser would itself fold some BatchNorms
    of the graph that the folded graph is compared with. optimised True: the graph runs as in a server.
    threads: how many of them share the work of one run.
    """

    def __init__(self, content: bytes, *, optimised: bool, providers: Sequence[str] = (CPU,), threads: int = 1):
        ort = _onnxruntime()
        options = ort.SessionOptions()
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as a server has it
        options.log_severity_level = 4  # silence the log: every failure is raised as an exception and reported by us
        try:
            self._session = ort.InferenceSession(content, options, providers=list(providers))
        except Exception as error:  # onnxruntime raises its own types, and UnicodeDecodeError on damaged files
            if "bfloat16" in str(error) or ("implementation" in str(error) and _has_bfloat16(content)):
                raise ExportError(
                    f"the network computes in bfloat16 itself, which onnxruntime {ort.__version__} cannot do here "
                    f"({_reason(error)}): leave torch.autocast and .bfloat16() out of it, and ask for it with "
                    "--dtype bf16 on a machine that has it"
                ) from error
            if "implementation" in str(error) and _has_float64(content):
                raise ExportError(
                    f"onnxruntime {ort.__version__} cannot load the graph: {_reason(error)}. The network computes in "
                    "float64, for which it lacks operators: call network.float() before the export, and leave "
                    ".double() out of its forward"
                ) from error
            raise ExportError(f"onnxruntime {ort.__version__} cannot load the graph: {_reason(error)}") from error
        self.outputs = [o.name for o in self._session.get_outputs()]
        #: The clock to time runs with, in seconds: the CPU time of the calling thread where it does all the work, else
        #: wall time.
        alone = list(providers) == [CPU] and threads == 1
        self.clock: Callable[[], float] = time.thread_time if alone else time.perf_counter

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the outputs by name. Raises ExportError where the graph cannot run on these inputs."""
        try:
            values = self._session.run(None, {k: np.ascontiguousarray(v) for k, v in inputs.items()})
        except Exception as error:
            shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in inputs.items())
            raise ExportError(f"the exported graph does not run on {shapes}: {_reason(error)}") from error
        return dict(zip(self.outputs, values, strict=True))


def providers_here() -> tuple[str, ...]:
    """Return the execution providers of this onnxruntime among those that exports are made for."""
    return (*([CUDA] if CUDA in _onnxruntime().get_available_providers() else []), CPU)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(
            "the proof runs the graph in onnxruntime, which is not installed: pip install 'normfold[cpu]' (or [gpu])"
        ) from error
    return onnxruntime


def _has_bfloat16(content: bytes) -> bool:
    """Whether the graph casts anything to bfloat16; onnxruntime's message names the operator alone."""
    casts = (node for node in onnx.load_model_from_string(content).graph.node if node.op_type == "Cast")
    return any(attribute.i == onnx.TensorProto.BFLOAT16 for cast in casts for attribute in cast.attribute)


def _has_float64(content: bytes) -> bool:
    """Whether the graph takes float64, holds a tensor of it, or casts to it."""
    graph, double = onnx.load_model_from_string(content).graph, onnx.TensorProto.DOUBLE
    return (
        any(value.type.tensor_type.elem_type == double for value in graph.input)
        or any(tensor.data_type == double for tensor in graph.initializer)
        or any(a.i == double for node in graph.node if node.op_type == "Cast" for a in node.attribute)
    )


def _reason(error: Exception) -> str:
    """Return the sentence of onnxruntime's error without number, source file and line."""
    text = first_line(error)
    text = text.partition("Status Message: ")[2] or text
    text = re.sub(r"\S*/onnxruntime/core/\S+ \S+::\w+\([^)]*\) ", "", text)
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
