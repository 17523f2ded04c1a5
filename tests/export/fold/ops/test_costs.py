"""A cost chooses between ways to fold, and never decides what is written."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tests.export.fold.graphs import graph, norm

from normfold.export.fold.ops import scaling
from normfold.export.fold.ops.scaling import AffineForm, Scaling
from normfold.export.fold.reading import Reading
from normfold.export.graphs.writing import Writing


@pytest.mark.parametrize("cost", [0.5, 1.0, 5.0])
def test_a_batchnorm_is_written_as_one_whatever_it_costs(cost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scaling._COSTS, AffineForm.BATCHNORM, cost)
    model = ir.from_proto(graph("(float[N,3,L] x) => (float[N,3,L] y) { b = BN(x, n) y = Relu(b) }", **norm("n", 3)))
    (op,) = (op for op in Reading(model.graph, 18).net().ops if isinstance(op, Scaling))
    assert op.cost(op.params) == cost
    op.write(Writing(model.graph, 18, dtype=np.dtype(np.float32)))
    written = model.graph.outputs[0].producer().inputs[0].producer()
    assert written.op_type == "BatchNormalization"
    assert written.attributes["epsilon"].as_float() == np.float32(1e-5)  # as it came
