"""No length is inferred that onnxruntime does not give, and what was inferred from a wrong one is gone, too."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.export.fold.graphs import drawn_inputs, graph, onnxruntime, weights

from normfold.export.graphs import correcting
from normfold.export.graphs.lengths import Dim, dims_of
from normfold.export.graphs.shapes import infer_shapes

POOLS = ("MaxPool", "AveragePool", "LpPool")


def inferred(model: onnx.ModelProto) -> dict[str | None, list[Dim] | None]:
    read = ir.from_proto(model)
    infer_shapes(read)
    return {v.name: dims_of(v) for node in read.graph.all_nodes() for v in node.outputs}


def check(call: str, x: str, rank: int, **arrays: Any) -> None:
    """Assert that each inferred length is the real one, and that each name of the input stands for its length."""
    names = ",".join(f"A{axis}" for axis in range(rank))
    model = graph(f"(float[{x}] x) => (float[{names}] y) {{ t = {call} y = Relu(t) }}", opset=18, **arrays)
    sizes = {"N": 2, "L": 8}
    shape = tuple(sizes[d] if d in sizes else int(d) for d in x.split(","))
    lengths = onnxruntime(model, drawn_inputs(model, shape))[0].shape
    for found in (inferred(model), inferred(onnx.shape_inference.infer_shapes(model))):  # a file may state them
        dims = found["t"]
        assert dims is not None
        assert len(dims) == rank
        said = [d if isinstance(d, int) else sizes.get(str(d)) for d in dims]
        assert all(d in (None, n) for d, n in zip(said, lengths, strict=True)), (call, x, dims, lengths)


EINSUMS = {
    "ol,ncl->nol": (4, 1),
    "cl,ncl->ncl": (1, 8),
    "nl,ncl->ncl": (1, 1),
    "c,ncl->ncl": (1,),
    "ol,...l->...ol": (4, 1),
    "n...,n...->n...": (1, 1, 8),
    "kl,ncl->nckl": (2, 1),
    "...l,...l->...l": (1, 3, 1),
}


@pytest.mark.parametrize("x", ["N,3,8", "2,3,8", "N,3,L", "N,1,8", "N,3,1"])
@pytest.mark.parametrize("equation", EINSUMS)
def test_an_einsum_is_as_long_as_the_longer_term(equation: str, x: str) -> None:
    c = weights(*EINSUMS[equation])
    shape = [{"N": 2, "L": 8}.get(d) or int(d) for d in x.split(",")]
    try:
        rank = np.einsum(equation, c, np.zeros(shape)).ndim
    except ValueError:
        return  # onnxruntime refuses it, too
    terms, _, result = equation.partition("->")
    first, second = terms.split(",")
    check(f'Einsum<equation="{equation}">(c, x)', x, rank, c=c)
    check(f'Einsum<equation="{second},{first}->{result}">(x, c)', x, rank, c=c)


@settings(deadline=None, max_examples=60)
@given(
    op=st.sampled_from(POOLS),
    length=st.integers(5, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 2),
    where=st.sampled_from(["pads=[0,0]", "pads=[0,1]", "pads=[1,1]", 'auto_pad="SAME_UPPER"', 'auto_pad="VALID"']),
    ceil=st.integers(0, 1),
)
def test_pools(op: str, length: int, kernel: int, stride: int, dilation: int, where: str, ceil: int) -> None:
    if "SAME" in where:
        kernel = max(kernel, stride)  # less would need negative padding, which onnxruntime refuses
    assume(kernel > 1 or "1" not in where)
    given = f"kernel_shape=[{kernel}],strides=[{stride}],ceil_mode={ceil},{where}"
    if op == "MaxPool" and "pads" in where:
        given += f",dilations=[{dilation}]"
    check(f"{op}<{given}>(x)", f"N,3,{length}", 3)


def test_resize_transposed_convolution_and_prelu() -> None:
    for size, scale in product((3, 5, 10), (0.3, 0.6, 0.7, 1.1, 1.4, 2.3)):
        check("Resize(x, , s)", f"N,3,{size}", 3, s=np.array([1, 1, scale], np.float32))
    for auto, output, stride in product(("SAME_UPPER", "SAME_LOWER", "NOTSET"), (0, 1), (2, 3)):
        given = f'auto_pad="{auto}",output_padding=[{output}],strides=[{stride}]'
        check(f"ConvTranspose<{given}>(x, w)", "N,3,5", 3, w=weights(3, 4, 3))
    check("PRelu(x, s)", "N,1,8", 3, s=weights(3, 1))


@pytest.mark.parametrize("scale", [np.inf, np.nan])
def test_a_scale_that_no_runtime_takes_raises_nothing(scale: float) -> None:
    text = "(float[N,3,8] x) => (float[N,A,B] y) { t = Resize(x, , s) y = Relu(t) }"
    assert inferred(graph(text, opset=18, s=np.array([1, 1, scale], np.float32)))["t"] == [None] * 3


def test_a_stride_of_zero_beside_a_stated_length_raises_nothing() -> None:
    text = """(float[N,3,8] x) => (float[N,3,B] y) <float[N,3,4] t> {
        t = MaxPool<kernel_shape=[2],strides=[0],ceil_mode=1>(x) y = Relu(t) }"""
    assert inferred(graph(text, opset=18))["t"] == [None] * 3


@pytest.mark.parametrize("stated", [False, True])
def test_what_follows_from_a_wrong_length_is_gone_and_the_rest_stays(stated: bool) -> None:
    model = graph(
        """(float[N,3,8] x) => (float[N,A,B] y) { e = Einsum<equation="ol,ncl->nol">(c, x) f = Conv<pads=[1,1]>(e, v)
           g = Relu(f) s = Shape(e) r = Reshape(x, s) h = Conv(x, w) y = Relu(h) }""",
        c=weights(4, 1),
        v=weights(5, 4, 3),
        w=weights(2, 3, 1),
    )
    found = inferred(onnx.shape_inference.infer_shapes(model) if stated else model)
    assert (found["e"], found["f"], found["g"]) == (["N", 4, None], ["N", 5, None], ["N", 5, None])
    assert found["r"] in (None, [None, None, None])
    assert found["h"] == ["N", 2, 8]


def test_a_wrong_length_is_gone_in_a_branch_and_behind_it() -> None:
    model = graph(
        """(float[N,3,8] x) => (float[N,4,B] y) {
        b = If (yes) <
            then_branch = one () => (float[N,4,P] p) { p = Einsum<equation="ol,ncl->nol">(c, x) },
            else_branch = two () => (float[N,4,P] q) { q = Einsum<equation="ol,ncl->nol">(c, x) } >
        d = Relu(b) y = Relu(d) }""",
        c=weights(4, 1),
        yes=np.array(True),
    )
    found = inferred(model)
    assert found["p"] in (["N", 4, None], ["N", 4, "P"])
    assert found["d"] is None or found["d"][2] is None or isinstance(found["d"][2], str)


def nested(depth: int) -> str:
    """Return a node that gives e{depth}: an Einsum in ``depth`` loops."""
    if depth == 0:
        return 'e0 = Einsum<equation="ol,ncl->nol">(c, x)'
    body = f"{nested(depth - 1)} q{depth} = Relu(e{depth - 1}) d{depth} = Identity(b{depth})"
    given, results = f"int64 i{depth}, bool b{depth}, float[N,4,8] x{depth}", f"bool d{depth}, float[N,4,1] q{depth}"
    return f"e{depth} = Loop (m, yes, z) <body = g{depth} ({given}) => ({results}) {{ {body} }}>"


def test_the_work_does_not_double_with_each_loop_around_another(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], correcting._infer_again
    monkeypatch.setattr(correcting, "_infer_again", lambda *given: (calls.append(1), real(*given)))
    text = f"(float[N,3,8] x, float[N,4,8] z) => (float[N,4,B] y) {{ {nested(7)} y = Relu(e7) }}"
    found = inferred(graph(text, c=weights(4, 1), m=np.array(2), yes=np.array(True)))
    assert found["e0"] == ["N", 4, None]
    assert 0 < len(calls) < 200  # 629 where each loop corrects its body twice
