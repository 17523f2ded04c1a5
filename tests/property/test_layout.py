"""Any network, folded and rewritten for the CPU, computes what it computed: drawn networks against float64."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import HealthCheck, Phase, given, note, reject, settings

from normfold.export.fold import fold
from normfold.export.variants import REWRITES

from .networks import Layer, Network, networks
from .test_fold import run

EXAMPLES = int(os.environ.get("NORMFOLD_EXAMPLES", "100"))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
@given(networks())
def test_a_network_in_any_form_computes_what_it_computed(drawn: tuple[list[Layer], Network]) -> None:
    layers, network = drawn
    note("\n".join(map(str, layers)))
    forms = {}
    for name, rewrite in REWRITES.items():
        model = ir.from_proto(network.model)
        fold(model)
        rewrite(model)
        forms[name] = ir.to_proto(model)
        note(f"{name}: {onnx.printer.to_text(forms[name].graph)}")
        onnx.checker.check_model(forms[name], full_check=True)
        assert [o.name for o in forms[name].graph.output] == [o.name for o in network.model.graph.output]
    rng = np.random.default_rng(0)
    dim = network.model.graph.input[0].type.tensor_type.shape.dim[2]
    lengths = [dim.dim_value] if dim.dim_value else [24, 41]
    for n, length in zip((2, 3), lengths, strict=False):
        x = rng.standard_normal((n, network.channels, length)).astype(np.float32)
        try:
            before = run(network.model, x)
        except Exception:
            reject()  # the drawn network does not run at this length
        expected = network.reference(x)
        for name, form in forms.items():
            for want, old, new in zip(expected, before, run(form, x), strict=True):
                assert new.shape == want.shape, name
                scale = np.abs(want).max()
                old_error, new_error = np.abs(old - want).max(), np.abs(new - want).max()
                # As for the fold alone: no rewrite but the fold changes what is rounded.
                granted = 2 * old_error + 64 * np.finfo(np.float32).eps * max(scale, 1e-3)
                assert new_error <= granted, (name, old_error, new_error, scale)
