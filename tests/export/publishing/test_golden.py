from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from normfold.export.pipeline import ExportRequest, export_model
from normfold.export.proof.verify import Difference, Verification
from normfold.export.publishing.golden import FACTOR, FEWER_BITS, tolerance
from normfold.models import gunpoint
from normfold.serving.catalog.golden import replay
from normfold.serving.errors import LoadError
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings


def proof(**bounds: float) -> Verification:
    differences = [Difference("y", kind, 1, 0.0, 0.0, b / 10, b / 10, b, None) for kind, b in bounds.items()]
    return Verification(tuple(differences), "r", ())


def test_the_tolerance_follows_the_rounding_of_the_network_on_inputs_of_that_kind() -> None:
    assert tolerance(proof(random=1e-6, scaled=5e-6), "random", None) == FACTOR * 1e-6
    assert tolerance(proof(random=1e-6, scaled=5e-6), "sample", None) == FACTOR * 5e-6
    assert tolerance(proof(random=1e-6), "random", proof(random=0.2)) == pytest.approx(0.02)
    assert tolerance(proof(random=1e-6), "random", proof(random=1e-5)) == FEWER_BITS


@pytest.mark.usefixtures("cache")
def test_a_server_takes_what_was_exported_and_refuses_a_flipped_bit_that_moves_an_answer(tmp_path: Path) -> None:
    report = export_model(
        ExportRequest(gunpoint.FACTORY, tmp_path, "g", ["x=FP32[N,1,L]"], gunpoint.CHECKPOINT, variant="folded")
    )
    version = Path(report.path)
    golden = (version / "golden.json").read_bytes()
    assert float(json.loads(golden)["relative_tolerance"]) < 1e-4
    model = onnx.load(version / "model.onnx")

    def session(content: bytes) -> Session:
        return Session(content, Device("cpu"), SessionSettings())

    assert replay(session(model.SerializeToString()), golden) is not None
    rng, moved, passed = np.random.default_rng(0), 0, 0
    inputs = {e["name"]: e for e in json.loads(golden)["inputs"]}
    weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 3]
    for _ in range(20):
        damaged = onnx.ModelProto.FromString(model.SerializeToString())
        tensor = next(t for t in damaged.graph.initializer if t.name == weights[rng.integers(len(weights))].name)
        array = numpy_helper.to_array(tensor).copy()
        bits = array.reshape(-1).view(np.uint32)
        bits[rng.integers(bits.size)] ^= np.uint32(1 << int(rng.integers(18, 23)))  # of the mantissa's upper bits
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        moved += _moved(model, damaged, inputs)
        try:
            replay(session(damaged.SerializeToString()), golden)
        except LoadError:
            passed -= 1
        passed += 1
    assert moved >= 10
    assert passed <= 20 - moved


def _moved(before: onnx.ModelProto, after: onnx.ModelProto, inputs: dict) -> bool:  # type: ignore[type-arg]
    """Whether an answer moves by more than 1e-4 of its largest value: a tenth of what was once allowed."""
    feeds = {
        name: np.frombuffer(base64.b64decode(e["data"]), np.float32).reshape(e["shape"]) for name, e in inputs.items()
    }
    a, b = (ort.InferenceSession(m.SerializeToString()).run(None, feeds)[0] for m in (before, after))
    return bool(np.abs(a - b).max() > 1e-4 * np.abs(a).max())
