"""Any network, folded, computes what it computed: drawn networks against float64."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import HealthCheck, Phase, given, note, reject, settings
from hypothesis import strategies as st

from normfold.export.fold import fold

from .networks import OPERANDS, Layer, Network, networks


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


def folded(model: onnx.ModelProto, fold_all: bool = False) -> tuple[onnx.ModelProto, object]:
    copy = ir.from_proto(model)
    report = fold(copy, fold_all=fold_all)
    return ir.to_proto(copy), report


#: float32's distance from 1 to the next number.
ULP = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Question:
    """An input of a drawn network, its float64 answers, and how far from each an answer in float32 may be."""

    x: np.ndarray
    wanted: list[np.ndarray]
    granted: list[float]

    def require(self, answers: list[np.ndarray], form: str = "") -> None:
        """Assert that the answers of a rewritten graph have the shapes and, as far as is granted, the numbers."""
        for want, answer, granted in zip(self.wanted, answers, self.granted, strict=True):
            assert answer.shape == want.shape, form
            assert np.abs(answer - want).max() <= granted, (form, np.abs(answer - want).max(), granted)


def questions(network: Network) -> Iterator[Question]:
    """Yield inputs of one or two lengths.

    Granted is twice the error of the graph as it was drawn, on this or on 16 other inputs, and some roundings more: 64
    ulps of what the output usually holds, for a dozen layers may each round once more where their order changed, and
    four times what the answer itself moves by where each number of the input does by an ulp.
    """
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    dim = network.model.graph.input[0].type.tensor_type.shape.dim[2]
    lengths = [dim.dim_value] if dim.dim_value else [24, 41]
    for n, length in zip((2, 3), lengths, strict=False):
        x = rng.standard_normal((n, network.channels, length)).astype(np.float32)
        try:
            before = run(network.model, x)
        except Exception:
            reject()  # the drawn network does not run at this length
        wanted = network.reference(x)
        others = other.standard_normal((16, *x.shape[1:])).astype(np.float32)
        usual = network.reference(others)
        errors = [np.abs(old - want).max() for old, want in zip(run(network.model, others), usual, strict=True)]
        moved = network.reference(x.astype(np.float64) * (1 + ULP * other.choice([-1, 1], x.shape)))
        granted = []
        for want, old, many, near, error in zip(wanted, before, usual, moved, errors, strict=True):
            assert old.shape == want.shape
            scale = max(np.abs(want).max(), np.abs(many).max(), 1e-3)
            own = max(np.abs(old - want).max(), error)
            granted.append(2 * own + 64 * ULP * scale + 4 * np.abs(near - want).max())
        yield Question(x, wanted, granted)


@drawing(300)
@given(networks(), st.booleans())
def test_a_folded_network_computes_what_it_computed(drawn: tuple[list[Layer], Network], fold_all: bool) -> None:
    require(drawn, fold_all)


@drawing(200)
@given(networks(OPERANDS), st.booleans())
def test_a_network_of_rare_operands_computes_what_it_computed(
    drawn: tuple[list[Layer], Network], fold_all: bool
) -> None:
    require(drawn, fold_all)


def require(drawn: tuple[list[Layer], Network], fold_all: bool) -> None:
    layers, network = drawn
    note("\n".join(map(str, layers)))
    model, report = folded(network.model, fold_all)
    note(str(report))
    note(onnx.printer.to_text(model.graph))
    onnx.checker.check_model(model, full_check=True)
    for question in questions(network):
        question.require(run(model, question.x))
