"""A model of Triton's Python backend: all requests of a batch in one run of onnxruntime."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = (HERE / "paths.txt").read_text(encoding="utf-8").splitlines()

import numpy as np  # noqa: E402
import triton_python_backend_utils as triton  # noqa: E402
from session import session  # noqa: E402


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.session = session(str(HERE / "model.onnx"))

    def execute(self, requests: list) -> list:
        inputs = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        (y,) = self.session.run(None, {"x": inputs[0] if len(inputs) == 1 else np.concatenate(inputs)})
        ends = np.cumsum([len(x) for x in inputs])
        parts = np.split(y, ends[:-1])
        return [triton.InferenceResponse([triton.Tensor("y", part)]) for part in parts]
