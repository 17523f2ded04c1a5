"""The models that Triton was asked about, as a repository for Triton's Python backend or for this server."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import parser

#: Runs model.onnx beside it; ``python3 -m venv`` with numpy<2 and onnxruntime, whose site-packages ``PACKAGES`` names.
BACKEND = """
import sys
sys.path.insert(0, "PACKAGES")
import os
import numpy as np, onnxruntime
import triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feeds = {x.name: utils.get_input_tensor_by_name(request, x.name).as_numpy() for x in self.session.get_inputs()}
        feeds = {name: text(a, bytes.decode) if a.dtype == object else a for name, a in feeds.items()}
        names = [y.name for y in self.session.get_outputs() if y.name in request.requested_output_names()]
        arrays = [text(a, str.encode) if a.dtype == object else a for a in self.session.run(names, feeds)]
        return utils.InferenceResponse([utils.Tensor(name, array) for name, array in zip(names, arrays)])

def text(array, change):
    return np.array([change(x, "latin1") for x in array.reshape(-1)], object).reshape(array.shape)
"""

HEAD = '<ir_version: 8, opset_import: ["": 13]>'
CPU = "instance_group { kind: KIND_CPU count: 1 }"
IDENTITIES = {
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "INT64": "int64",
    "UINT64": "uint64",
    "FP16": "float16",
    "FP64": "double",
    "BOOL": "bool",
}


def tensor(side: str, name: str, datatype: str, dims: str, more: str = "") -> str:
    return f'{side} {{ name: "{name}" data_type: TYPE_{datatype} dims: [{dims}] {more} }}\n'


#: Name: (versions, ONNX text or None for a file that is no model, config.pbtxt without name and backend).
MODELS: dict[str, tuple[tuple[int, ...], str | None, str]] = {
    "m": (
        (1, 2),
        "m (float[N,4] x) => (float[N,4] y, float[N,4] z) { y = Identity (x) z = Add (x, x) }",
        "max_batch_size: 8 version_policy { all {} } dynamic_batching {}\n"
        + tensor("input", "x", "FP32", "4")
        + tensor("output", "y", "FP32", "4", 'label_filename: "labels.txt"')
        + tensor("output", "z", "FP32", "4"),
    ),
    "nb": (
        (1,),
        "nb (float[K,3] x) => (float[K,3] y) { y = Identity (x) }",
        tensor("input", "x", "FP32", "-1, 3") + tensor("output", "y", "FP32", "-1, 3"),
    ),
    "two": (
        (1,),
        "two (int32[N,4] a, int32[N,4] b) => (int32[N,4] s, int32[N,4] d) { s = Add (a, b) d = Sub (a, b) }",
        "max_batch_size: 4\n"
        + "".join(tensor("input", name, "INT32", "4") for name in "ab")
        + "".join(tensor("output", name, "INT32", "4") for name in "sd"),
    ),
    "str": (
        (1,),
        "str (string[N,2] x) => (string[N,2] y) { y = Identity (x) }",
        "max_batch_size: 8\n" + tensor("input", "x", "STRING", "2") + tensor("output", "y", "STRING", "2"),
    ),
    "q": (
        (1,),
        "q (float[N,4] x) => (float[N,4] y) { y = Identity (x) }",
        "max_batch_size: 8\n"
        + tensor("input", "x", "FP32", "4")
        + tensor("output", "y", "FP32", "4")
        + """dynamic_batching {
  preferred_batch_size: [4, 8] max_queue_delay_microseconds: 1000 priority_levels: 3 default_priority_level: 2
  default_queue_policy {
    timeout_action: REJECT default_timeout_microseconds: 5000000 allow_timeout_override: true max_queue_size: 16
  }
}
""",
    ),
    "resh": (
        (1,),
        "resh (float[N] x) => (float[N] y) { y = Identity (x) }",
        "max_batch_size: 8\n"
        + tensor("input", "x", "FP32", "1", "reshape { shape: [] }")
        + tensor("output", "y", "FP32", "1", "reshape { shape: [] }"),
    ),
    "bad": (
        (1,),
        None,
        "max_batch_size: 8\n" + tensor("input", "x", "FP32", "4") + tensor("output", "y", "FP32", "4"),
    ),
} | {
    f"id_{datatype.lower()}": (
        (1,),
        f"id ({onnx_type}[N,K] x) => ({onnx_type}[N,K] y) {{ y = Identity (x) }}",
        "max_batch_size: 8\n" + tensor("input", "x", datatype, "-1") + tensor("output", "y", datatype, "-1"),
    )
    for datatype, onnx_type in IDENTITIES.items()
}


def build(root: Path, packages: Path | None = None) -> Path:
    """Write the repository below ``root``; with ``packages``, a site-packages folder, for Triton's Python backend."""
    for name, (versions, graph, config) in MODELS.items():
        for version in versions:
            folder = root / name / str(version)
            folder.mkdir(parents=True)
            if graph is None:
                (folder / "model.onnx").write_bytes(b"not a model")
            else:
                onnx.save(parser.parse_model(f"{HEAD} {graph}"), folder / "model.onnx")
            if packages:
                (folder / "model.py").write_text(BACKEND.replace("PACKAGES", str(packages)))
        backend = "python" if packages else "onnxruntime"
        (root / name / "config.pbtxt").write_text(f'name: "{name}" backend: "{backend}" {CPU}\n{config}')
        (root / name / "labels.txt").write_text("a\nb\nc\nd\n")
    return root
