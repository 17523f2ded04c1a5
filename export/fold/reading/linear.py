"""Readers of linear operators: convolutions, matrix products, recurrent networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from normfold.export.fold.affine import Array
from normfold.export.fold.net import Op
from normfold.export.fold.ops.axis_labels import AxisLabels
from normfold.export.fold.ops.bias import PRODUCTS
from normfold.export.fold.ops.linear import Linear
from normfold.export.fold.ops.products import Contraction, MatrixProduct, Weighing
from normfold.export.fold.ops.recurrent import Gates, Recurrent
from normfold.export.fold.ops.weights import WeightForm, Weights
from normfold.export.fold.reading.averages import weighted_mean
from normfold.export.fold.reading.node import Node, NotKnown, Reader

if TYPE_CHECKING:
    from normfold.export.fold.reading import Reading


def _conv(n: Node) -> Op:
    weight, bias = n.constant(1), n.constant(2)
    if weight is None or (n.has(2) and bias is None) or n.computed() != [0]:
        raise NotKnown
    groups = n.attribute("group", 1)
    w = weight.astype(np.float64)
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    pads = n.attribute("pads", ()) or ()
    edges = any(pads) or n.attribute("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    b = np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64)
    keeps_lengths = _keeps_lengths(n, weight.shape[2:])
    middle = _middle(n, weight.shape[2:]) if keeps_lengths else None
    return Linear(params=Weights(w, b), edges=edges, keeps_lengths=keeps_lengths, middle=middle, **n.parts())


def _keeps_lengths(n: Node, taps: Sequence[int]) -> bool:
    """Whether a convolution has no strides and pads as many zeros as its taps reach beyond one entry."""
    if n.attribute("auto_pad", "NOTSET") != "NOTSET" or any(s != 1 for s in n.attribute("strides", ()) or ()):
        return False
    pads = np.reshape(n.attribute("pads") or [0] * 2 * len(taps), (2, len(taps)))
    dilations = n.attribute("dilations") or [1] * len(taps)
    return bool(np.array_equal(pads.sum(axis=0), [d * (k - 1) for d, k in zip(dilations, taps, strict=True)]))


def _middle(n: Node, taps: Sequence[int]) -> tuple[int, ...] | None:
    """Return the tap that lies on the output's own position, where no strides are; None where none does."""
    lead = (n.attribute("pads") or [0] * 2 * len(taps))[: len(taps)]
    steps = list(zip(lead, n.attribute("dilations") or [1] * len(taps), taps, strict=True))
    inside = all(p >= 0 and p % d == 0 and p // d < k for p, d, k in steps)
    return tuple(p // d for p, d, _ in steps) if inside else None


def _conv_transpose(n: Node) -> Op:
    weight, bias = n.constant(1), n.constant(2)
    if weight is None or (n.has(2) and bias is None) or n.computed() != [0]:
        raise NotKnown
    groups = n.attribute("group", 1)
    w = weight.astype(np.float64)
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).swapaxes(1, 2)
    # Every output sees every tap only if there is one tap, and no output lies between inputs.
    single = all(k == 1 for k in weight.shape[2:]) and all(s == 1 for s in n.attribute("strides", (1,)))
    added = (
        any(n.attribute("pads", ()) or ())
        or any(n.attribute("output_padding", ()) or ())
        or n.attribute("output_shape") is not None
    )
    b = np.zeros(w.shape[0] * w.shape[1]) if bias is None else bias.astype(np.float64)
    return Linear(params=Weights(w, b), edges=not single or added, form=WeightForm.TRANSPOSED, **n.parts())


def _gemm(n: Node) -> Op:
    weight, bias = n.constant(1), n.constant(2)
    if weight is None or (n.has(2) and bias is None) or n.computed() != [0] or n.attribute("transA", 0):
        raise NotKnown
    w = weight.astype(np.float64) * n.attribute("alpha", 1.0)
    w = w if n.attribute("transB", 0) else w.T
    if bias is None:
        b = np.zeros(w.shape[0])
    else:
        b = bias.astype(np.float64) * n.attribute("beta", 1.0)
        if b.ndim > 1 and b.shape[0] != 1:
            raise NotKnown
        b = np.broadcast_to(b.reshape(-1), (w.shape[0],))
    form = WeightForm.OUT_IN if n.attribute("transB", 0) else WeightForm.IN_OUT
    x = n.tensor(0)
    if x.shape is None:
        x.shape = (f"{x.name}[0]", w.shape[1])  # the input of a Gemm is always a matrix
    return Linear(params=Weights(w[None], b), form=form, middle=(), **n.parts())


def _matmul(n: Node) -> Op:
    average = weighted_mean(n)
    if average is not None:
        return average
    places = n.computed()
    weight = n.constant(1 - places[0]) if len(places) == 1 else None
    if weight is None or weight.ndim < 2 or n.rank(places[0]) < 2:
        raise NotKnown
    if weight.ndim > 2:
        return _contraction(n, AxisLabels.of_matmul(n.rank(places[0]), weight.ndim, places[0]), weight, places)
    w = weight.astype(np.float64)
    if places == [1]:  # the matrix weighs the last axis but one
        axis, form = n.rank(1) - 2, WeightForm.OUT_IN
    else:
        axis, form, w = n.rank() - 1, WeightForm.IN_OUT, w.T
    return _product(n, w, axis, form, places)


def _product(n: Node, weight: Array, axis: int, form: WeightForm, places: list[int]) -> MatrixProduct:
    """Return the product of the only computed input with ``weight`` (out, in) along ``axis``."""
    params = Weights(weight[None], np.zeros(len(weight)))
    place = 1 - places[0]
    return MatrixProduct(
        params=params, axis_in=axis, axis_out=axis, form=form, place=place, middle=(), **n.parts(places)
    )


def _einsum(n: Node) -> Op:
    """Sum of products with a constant; a MatrixProduct where that is a matrix along one axis: "oc,ncl->nol"."""
    places = n.computed()
    weight = n.constant(1 - places[0]) if len(places) == 1 and len(n.node.inputs) == 2 else None
    terms, arrow, result = str(n.attribute("equation", "")).replace(" ", "").partition("->")
    operands = terms.split(",")
    if weight is None or not arrow or len(operands) != 2 or "." in operands[1 - places[0]]:
        raise NotKnown
    term, constant = operands[places[0]], list(operands[1 - places[0]])
    hidden = n.rank(places[0]) - len(term.replace("...", ""))
    data, out = _labels(term, hidden), _labels(result, hidden)
    if any(len(set(names)) != len(names) for names in (data, constant, out)):
        raise NotKnown  # a diagonal
    summed, given = set(data) - set(out), set(out) - set(data)
    if len(summed) == len(given) == 1 and set(constant) == summed | given:
        (old,), (new,) = summed, given
        lengths = n.dims(n.value(places[0]))
        assert lengths is not None
        if weight.shape[constant.index(old)] == 1 and lengths[data.index(old)] != 1:
            raise NotKnown  # the matrix is broadcast
        if out == [new if label == old else label for label in data]:  # the channels stay on their axis
            w = weight.astype(np.float64)
            form = WeightForm.OUT_IN if constant == [new, old] else WeightForm.IN_OUT
            return _product(n, w if form is WeightForm.OUT_IN else w.T, data.index(old), form, places)
    return _contraction(n, AxisLabels(tuple(data), tuple(constant), tuple(out)), weight, places)


def _contraction(n: Node, labels: AxisLabels, weight: Array, places: list[int]) -> Contraction:
    """Return the sum of products with a constant whose axes are as long as those of the input that they weigh."""
    sizes = dict(zip(labels.constant, weight.shape, strict=True))
    lengths = n.dims(n.value(places[0]))
    assert lengths is not None
    if not all(sizes.get(name, d) == d for name, d in zip(labels.data, lengths, strict=True)):
        raise NotKnown  # one of the two is broadcast
    added = np.zeros((1,) * len(labels.result))
    params = Weighing(labels, weight.astype(np.float64), added)
    return Contraction(params=params, place=1 - places[0], **n.parts(places))


def _labels(term: str, hidden: int) -> list[str]:
    """Return the label of each axis of a term of an Einsum; those of "..." are the numbers of the hidden axes."""
    before, dots, behind = term.partition("...")
    return [*before, *(map(str, range(hidden)) if dots else ()), *behind]


def _recurrent(n: Node) -> Op:
    weight, recurrence, bias = n.constant(1), n.constant(2), n.constant(3)
    if weight is None or recurrence is None or (n.has(3) and bias is None) or 0 not in n.computed():
        raise NotKnown  # where X is constant, the first computed input is a state
    gates = weight.shape[1]
    both = np.zeros((weight.shape[0], 2 * gates)) if bias is None else bias.astype(np.float64)
    params = Gates(weight.astype(np.float64), both[:, :gates], both[:, gates:])
    return Recurrent(params=params, **n.parts(n.computed()))


def bias_of(op: Op, reading: Reading) -> ir.Node | None:
    """Give a product the constant of the Add behind it as its bias; return the Add, or None where there is none."""
    if not isinstance(op, (Linear, Contraction)) or op.node.op_type not in PRODUCTS or op.outputs[0].pinned:
        return None
    uses = list(op.outputs[0].value.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or uses[0].node.graph is not reading.graph:
        return None
    add = uses[0].node
    bias = reading.constants.get(add.inputs[1 - uses[0].idx])
    result = reading.tensor(uses[0].node.outputs[0])
    y = op.outputs[0]
    if bias is None or y.shape is None or bias.ndim > len(y.shape):
        return None
    lengths = (1,) * (len(y.shape) - bias.ndim) + bias.shape
    if isinstance(op, Contraction):
        if any(n not in (1, d) for n, d in zip(lengths, y.shape, strict=True)):
            return None
        op.params = replace(op.params, added=bias.astype(np.float64).reshape(lengths))
        op.outputs = [result]
        return add
    size = op.params.weight.shape[1]
    if lengths[op.axis_out] not in (1, size) or any(d != 1 for a, d in enumerate(lengths) if a != op.axis_out):
        return None
    op.params = Weights(op.params.weight, np.broadcast_to(bias.astype(np.float64).reshape(-1), (size,)))
    op.outputs = [result]
    return add


#: The linear operators; an Embedding is a Gather, which is read in ``moving``.
READERS: dict[str, Reader] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
