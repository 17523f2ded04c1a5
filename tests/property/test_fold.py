"""Any network, folded, computes what it computed: drawn networks against float64."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import HealthCheck, Phase, given, note, reject, settings

from normfold.export.fold import fold

from .networks import Layer, Network, networks


def drawing(examples: int) -> settings:
    """How networks are drawn: as many as NORMFOLD_EXAMPLES says, else ``examples``."""
    return settings(
        max_examples=int(os.environ.get("NORMFOLD_EXAMPLES", examples)),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    )


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    # The optimiser would fold some of what is compared.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def folded(model: onnx.ModelProto) -> tuple[onnx.ModelProto, object]:
    copy = ir.from_proto(model)
    report = fold(copy)
    return ir.to_proto(copy), report


def answers(network: Network) -> Iterator[tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]]:
    """Inputs of one or two lengths, with the float64 outputs and those of the graph as it was drawn."""
    rng = np.random.default_rng(0)
    dim = network.model.graph.input[0].type.tensor_type.shape.dim[2]
    lengths = [dim.dim_value] if dim.dim_value else [24, 41]
    for n, length in zip((2, 3), lengths, strict=False):
        x = rng.standard_normal((n, network.channels, length)).astype(np.float32)
        try:
            before = run(network.model, x)
        except Exception:
            reject()  # the drawn network does not run at this length
        yield x, network.reference(x), before


def require_as_good(
    wanted: list[np.ndarray], before: list[np.ndarray], after: list[np.ndarray], form: str = ""
) -> None:
    """Assert that a rewritten graph errs at most twice as much as the graph before it, and some roundings more."""
    for want, old, new in zip(wanted, before, after, strict=True):
        assert new.shape == want.shape, form
        scale = np.abs(want).max()
        old_error, new_error = np.abs(old - want).max(), np.abs(new - want).max()
        # 64 ulps of the output's scale: a dozen layers may each round once more where their order changed.
        granted = 2 * old_error + 64 * np.finfo(np.float32).eps * max(scale, 1e-3)
        assert new_error <= granted, (form, old_error, new_error, scale)


@drawing(300)
@given(networks())
def test_a_folded_network_computes_what_it_computed(drawn: tuple[list[Layer], Network]) -> None:
    layers, network = drawn
    note("\n".join(map(str, layers)))
    model, report = folded(network.model)
    note(str(report))
    note(onnx.printer.to_text(model.graph))
    onnx.checker.check_model(model, full_check=True)
    for x, want, before in answers(network):
        require_as_good(want, before, run(model, x))
