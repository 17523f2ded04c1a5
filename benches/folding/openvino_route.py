"""OpenVINO has a graph and a runtime of its own, so its operators are counted, and its graphs run, here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARITHMETIC = ("Multiply", "Add", "Subtract", "Divide")
LINEAR = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")


class OpenVino:
    """One file, compiled to give one answer at a time; if ``shape`` is given, for inputs of this shape only."""

    def __init__(self, path: Path, threads: int = 1, shape: Sequence[int] | None = None) -> None:
        import openvino

        core = openvino.Core()
        self.model = openvino.convert_model(str(path))
        if shape is not None:
            self.model.reshape(list(shape))
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self.compiled = core.compile_model(self.model, "CPU", settings)
        self.request = self.compiled.create_infer_request()

    def run(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the first output for one input."""
        return self.infer(x).copy()

    def infer(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the first output for one input, in memory that the next call writes to."""
        self.request.infer([x], share_inputs=True)
        answer: NDArray[Any] = self.request.get_output_tensor(0).data
        return answer

    def left(self) -> int:
        """Return how many operators scale or shift each channel by a constant; a first bias does not count."""
        return sum(self._is_affine(op) for op in self.model.get_ops())

    def _is_affine(self, op: Any) -> bool:
        if op.get_type_name() not in ARITHMETIC:
            return False
        sources = [value.get_source_output().get_node() for value in op.inputs()]
        constants = [np.asarray(node.data) for node in sources if node.get_type_name() == "Constant"]
        if len(constants) != 1 or sum(size > 1 for size in constants[0].shape) != 1:
            return False
        (data,) = (node for node in sources if node.get_type_name() != "Constant")
        return not (op.get_type_name() == "Add" and data.get_type_name() in LINEAR)

    def nodes(self) -> int:
        """Return the number of operators in the graph, without constants."""
        return sum(op.get_type_name() not in ("Constant", "Parameter", "Result") for op in self.model.get_ops())
