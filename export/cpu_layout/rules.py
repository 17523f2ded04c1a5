"""How each operator is written in the new order of axes: one rule for each kind of operator, in one table.

In the identities x̂ is x in the new order (:mod:`normfold.export.cpu_layout.axes`). A rule returns None where its side
conditions do not hold: then the node stays as it is, and so do the values that it reads and gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.cpu_layout.axes import LIFTED, AxisOrder
from normfold.export.graphs.node import NodeView

__all__ = ["ANCHORS", "RULES", "Moved", "Rule", "takes"]

Array = NDArray[Any]
Attribute = int | Sequence[int]


@dataclass(frozen=True)
class Moved:
    """The changes that write one node in the new order."""

    #: The inputs that are read in the new order.
    data: tuple[int, ...] = (0,)
    #: Inputs whose constant is replaced by another.
    constants: Mapping[int, Array] = field(default_factory=dict)
    #: Attributes that change.
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    #: Whether the outputs are in the new order too; else they stay as they were.
    outputs: bool = True


Rule = Callable[[NodeView, AxisOrder], Moved | None]

#: The operators that are faster in the new order; the others only avoid changes of order between them.
ANCHORS = frozenset({"Conv", "ConvTranspose"})
#: The attributes of a window with one entry for each axis, and the entry for the axis of height 1.
WINDOW = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_shape": 1, "output_padding": 0}


def entrywise(node: NodeView, order: AxisOrder) -> Moved | None:
    """f(x)^ = f(x̂) for a function of each entry alone; further inputs (the bounds of Clip) are scalars."""
    return Moved() if node.only_first_read() else None


def normalised(node: NodeView, order: AxisOrder) -> Moved | None:
    """norm(x)^ = norm(x̂) for statistics over all axes behind C: an axis of one entry does not change them."""
    return Moved() if node.only_first_read() else None


def broadcast(node: NodeView, order: AxisOrder) -> Moved | None:
    """f(x, y)^ = f(x̂, ŷ): inputs of full rank and constants are written in the new order, scalars stay.

    A computed input of lower rank is refused: it would have to be reshaped by its meaning.
    """
    data, constants = [], dict[int, Array]()
    for index in range(len(node.node.inputs)):
        constant = node.constant(index)
        if takes(node, index, order):
            data.append(index)
        elif constant is not None and constant.ndim <= order.rank:
            if constant.size != 1:
                constants[index] = order.array(constant)
            elif constant.ndim > 1:  # one entry of any rank is a scalar to a broadcast
                constants[index] = constant.reshape(1)
        elif node.rank(index) != 0:
            return None
    return Moved(tuple(data), constants) if data else None


def windowed(node: NodeView, order: AxisOrder) -> Moved | None:
    """(x ∗ w)^ = x̂ ∗ ŵ for a window over the running axis, of height 1: convolutions and pools, padded or not.

    The weight must be constant. ``auto_pad`` adds no padding along the new axis, because the window has height 1 there.
    """
    attributes = dict[str, Attribute]()
    for name, absent in WINDOW.items():
        if (given := node.attribute(name)) is not None:
            if len(given) != order.rank - 2:
                return None
            attributes[name] = order.spatial(list(given), absent)
    if (given := node.attribute("pads")) is not None:
        if len(given) != 2 * (order.rank - 2):
            return None
        attributes["pads"] = order.pads(list(given))
    if node.node.op_type not in ("Conv", "ConvTranspose"):
        return Moved(attributes=attributes) if node.only_first_read() else None
    weight = node.constant(1)
    if weight is None or weight.ndim != order.rank:
        return None
    return Moved((0,), {1: order.array(weight)}, attributes)


def whole(node: NodeView, order: AxisOrder) -> Moved | None:
    """global(x)^ = global(x̂): a pool over all axes behind C, whatever their order."""
    return Moved()


def joined(node: NodeView, order: AxisOrder) -> Moved | None:
    """concat(x, y; a)^ = concat(x̂, ŷ; â), where constant inputs are written in the new order."""
    data, constants = [], dict[int, Array]()
    for index in range(len(node.node.inputs)):
        constant = node.constant(index)
        if takes(node, index, order):
            data.append(index)
        elif constant is not None and constant.ndim == order.rank:
            constants[index] = order.array(constant)
        else:
            return None
    return Moved(tuple(data), constants, _axis(order, node.attribute("axis")))


def along_axis(node: NodeView, order: AxisOrder) -> Moved | None:
    """f(x; a)^ = f(x̂; â) for a function that reads one axis alone: Split, Softmax (from opset 13), LpNormalization."""
    if node.node.op_type in ("Softmax", "LogSoftmax") and node.opset < 13:
        return None  # before opset 13 it flattened all axes behind its own
    default = 0 if node.node.op_type == "Split" else -1
    return Moved(attributes=_axis(order, node.attribute("axis", default)))


def layer_norm(node: NodeView, order: AxisOrder) -> Moved | None:
    """LayerNormalization over the last axis, where that stays the last one: in the lifted order."""
    last = node.attribute("axis", -1) % order.rank == order.rank - 1
    return Moved() if order is LIFTED and last and node.only_first_read() else None


def sliced(node: NodeView, order: AxisOrder) -> Moved | None:
    """x[a: i…j]^ = x̂[â: i…j], for constant axes; the bounds may be computed."""
    if node.opset < 10:
        return None
    axes = node.given_axes(3)
    if axes is None:
        starts = node.value(1)
        if node.value(3) is not None or starts is None or starts.shape is None or not isinstance(starts.shape[0], int):
            return None
        axes = list(range(starts.shape[0]))
    return Moved((0,), {3: np.array([order.axis(a) for a in axes], np.int64)})


def padded(node: NodeView, order: AxisOrder) -> Moved | None:
    """pad(x; p)^ = pad(x̂; p̂), for constant pads of all axes; the axis of one entry is not padded."""
    pads = node.constant_integers(1)
    if node.opset < 11 or pads is None or node.value(3) is not None or len(pads) != 2 * order.rank:
        return None
    return Moved((0,), {1: np.array(order.pads(pads), np.int64)})


def reduced(node: NodeView, order: AxisOrder) -> Moved | None:
    """r(x; a)^ = r(x̂; â). With keepdims = 0 the axis of one entry is reduced too, and the output stays as it is.

    The axes must be constant. Without keepdims all running axes must be reduced: only then do the other axes keep
    their order.
    """
    axes = node.given_axes(1)
    if axes is None:
        return None
    rank = order.rank
    there = sorted(order.axis(a) for a in axes)
    keep = bool(node.attribute("keepdims", 1))
    if not keep:
        if {a % rank for a in axes} & {0, 1} or len(set(there)) != rank - 2:
            return None
        there = [2, 3]
    if node.attribute("axes") is not None:
        return Moved(attributes={"axes": there}, outputs=keep)
    return Moved((0,), {1: np.array(there, np.int64)}, outputs=keep)


def resized(node: NodeView, order: AxisOrder) -> Moved | None:
    """resize(x)^ = resize(x̂) for constant scales or sizes, 1 for the axis of one entry; no regions, no axes."""
    mode = node.attribute("coordinate_transformation_mode", "half_pixel")
    policy = node.attribute("keep_aspect_ratio_policy", "stretch")
    if node.opset < 11 or node.attribute("axes") is not None or mode == "tf_crop_and_resize" or policy != "stretch":
        return None
    for index, one in ((2, 1.0), (3, 1)):
        given = node.constant(index)
        if given is not None and given.size == order.rank:
            moved = order.entries(list(given), given.dtype.type(one))
            return Moved((0,), {index: np.array(moved, given.dtype)})
    return None


def takes(node: NodeView, index: int, order: AxisOrder) -> bool:
    """Whether an input is computed and has as many axes as ``order`` rearranges."""
    return node.constant(index) is None and node.rank(index) == order.rank


def _axis(order: AxisOrder, axis: int) -> dict[str, Attribute]:
    return {"axis": order.axis(axis)}


RULES: Mapping[str, Rule] = {
    operator: rule
    for operators, rule in {
        "Conv ConvTranspose": windowed,  # (x ∗ w)^ = x̂ ∗ ŵ
        "MaxPool AveragePool LpPool": windowed,
        "GlobalAveragePool GlobalMaxPool GlobalLpPool": whole,
        "InstanceNormalization GroupNormalization BatchNormalization": normalised,
        "LayerNormalization": layer_norm,
        "Relu LeakyRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Tanh Softplus Softsign ThresholdedRelu": entrywise,
        "Gelu Mish Swish Erf Clip Exp Log Sqrt Reciprocal Abs Neg Sign Sin Cos Floor Ceil Round": entrywise,
        "Not IsNaN IsInf Identity Cast Dropout": entrywise,
        "Add Sub Mul Div Pow Max Min Sum Mean PRelu Where": broadcast,  # f(x, y)^ = f(x̂, ŷ)
        "Greater GreaterOrEqual Less LessOrEqual Equal And Or Xor": broadcast,
        "Concat": joined,
        "Split Softmax LogSoftmax LpNormalization": along_axis,
        "Slice": sliced,
        "Pad": padded,
        "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare": reduced,
        "ReduceLogSum ReduceLogSumExp": reduced,
        "Resize": resized,
    }.items()
    for operator in operators.split()
}
