"""Any network, folded and rewritten for the CPU, computes what it computed: drawn networks against float64."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from hypothesis import given, note

from normfold.export.fold import fold
from normfold.export.forms.variants import REFOLDS, REWRITES

from .networks import Layer, Network, networks
from .test_fold import drawing, questions, run


@drawing(100)
@given(networks())
def test_a_network_in_any_form_computes_what_it_computed(drawn: tuple[list[Layer], Network]) -> None:
    layers, network = drawn
    note("\n".join(map(str, layers)))
    forms = {}
    for name in (*REWRITES, *REFOLDS):
        model = ir.from_proto(network.model)
        if name in REWRITES:
            fold(model)
            REWRITES[name](model)
        else:
            REFOLDS[name](model)
        forms[name] = ir.to_proto(model)
        note(f"{name}: {onnx.printer.to_text(forms[name].graph)}")
        onnx.checker.check_model(forms[name], full_check=True)
        assert [o.name for o in forms[name].graph.output] == [o.name for o in network.model.graph.output]
    for question in questions(network):
        for name, form in forms.items():
            # As for the fold alone: no rewrite but the fold changes what is rounded.
            question.require(run(form, question.x), name)
