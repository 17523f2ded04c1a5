from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from normfold.export.pipeline import export_model
from normfold.export.proof.verify import Difference, Verification
from normfold.export.publishing.golden import FACTOR, FEWER_BITS, tolerance
from normfold.export.request import ExportRequest
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
    assert tolerance(proof(random=1e-6, scaled=5e-6), "scaled", None) == FACTOR * 5e-6
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
    rng, refused = np.random.default_rng(0), {"golden": 0, "a thousandth": 0}
    looser = json.dumps({**json.loads(golden), "relative_tolerance": 1e-3}).encode()
    names = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 3]
    for _ in range(20):
        damaged, name = onnx.ModelProto.FromString(model.SerializeToString()), names[rng.integers(len(names))]
        tensor = next(t for t in damaged.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        bits = array.reshape(-1).view(np.uint32)
        bits[rng.integers(bits.size)] ^= np.uint32(1 << int(rng.integers(15, 23)))  # of the mantissa's upper bits
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        flipped = session(damaged.SerializeToString())
        for kind, answer in (("golden", golden), ("a thousandth", looser)):
            try:
                replay(flipped, answer)
            except LoadError:
                refused[kind] += 1
    assert refused["golden"] > refused["a thousandth"]
    assert refused["golden"] >= 10
