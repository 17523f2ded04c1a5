"""The lengths that an operator really gives, where onnx's shape inference states others than onnxruntime gives.

    Einsum             a label of length 1 in one term and L in another has L; inference takes the first term's
    PRelu              likewise, where the slope is longer than the input
    pools, ceil_mode   no window begins behind the input and the padding before it; inference counts such a window
    ConvTranspose      SAME makes L·stride; inference adds the output padding
    Resize, Upsample   ⌊L·scale⌋ in float32; inference rounds the product in float64
    STFT               half of the frequencies, where inference counts all

Only operators with such a fault come in: where inference is right, it alone is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from normfold.export.graphs.domains import STANDARD

__all__ = ["BROADCASTING", "Dim", "dims_of", "real_lengths"]

#: The operators whose output inference may take for shorter than it is.
BROADCASTING = ("Einsum", "PRelu")

#: A length, the name of one, or None where it is not known.
Dim: TypeAlias = int | str | None


def real_lengths(node: ir.Node) -> list[Dim] | None:
    """Return the shape of the first output, right or unknown where the stated one is wrong; None where it has none."""
    rule = _RULES.get(node.op_type) if node.domain in STANDARD else None
    found = dims_of(node.outputs[0])
    if found is None or rule is None:
        return found
    try:
        return rule(node, found)
    except (ArithmeticError, IndexError, ValueError):  # numbers that no runtime takes: a stride of 0, a scale of NaN
        return [None] * len(found)


def dims_of(value: ir.Value | None) -> list[Dim] | None:
    """Return the shape of a value as lengths and names, or None."""
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def _einsum(node: ir.Node, found: list[Dim]) -> list[Dim]:
    terms, arrow, result = str(_given(node, "equation", "")).replace(" ", "").partition("->")
    operands, shapes = terms.split(","), [dims_of(v) for v in node.inputs]
    if not arrow:
        letters = terms.replace(".", "").replace(",", "")
        once = sorted(a for a in set(letters) if letters.count(a) == 1)
        result = ("..." if "..." in terms else "") + "".join(once)
    seen: dict[str, list[Dim]] = {}
    for operand, shape in zip(operands, shapes, strict=False):
        if shape is None:
            return [None] * len(found)
        for label, length in zip(_labels(operand, len(shape)), shape, strict=False):
            seen.setdefault(label, []).append(length)
    labels = _labels(result, len(found))
    if len(labels) != len(found) or any(label not in seen for label in labels):
        return found
    return [_joint(seen[label], d) for label, d in zip(labels, found, strict=True)]


def _labels(term: str, rank: int) -> list[str]:
    """Return the label of each axis; those of "..." are numbered from the right, as they are broadcast."""
    before, dots, behind = term.partition("...")
    hidden = range(rank - len(before) - len(behind), 0, -1) if dots else ()
    return [*before, *map(str, hidden), *behind]


def _joint(lengths: Sequence[Dim], found: Dim) -> Dim:
    """Return the length that all are broadcast to; another name that the file has for it stays."""
    longer = {d for d in lengths if d != 1}
    counts = [d for d in longer if isinstance(d, int)]
    known = counts[0] if counts else next(iter(longer)) if len(longer) == 1 else 1 if not longer else None
    if known is None:
        return None if found in lengths else found
    return known if isinstance(found, int) or found in lengths else found


def _slope(node: ir.Node, found: list[Dim]) -> list[Dim]:
    shapes = [dims_of(v) for v in node.inputs]
    if any(shape is None for shape in shapes):
        return found
    rank = max(len(shape or ()) for shape in shapes)
    if rank != len(found):
        return [None] * len(found)
    whole = [[*[1] * (rank - len(shape or ())), *(shape or ())] for shape in shapes]
    return [_joint(lengths, d) for *lengths, d in zip(*whole, found, strict=True)]


def _pool(node: ir.Node, found: list[Dim]) -> list[Dim]:
    def length(axis: int, size: int) -> int:
        stride, dilation = _at(node, "strides", axis, 1), _at(node, "dilations", axis, 1)
        automatic = _given(node, "auto_pad", "NOTSET")
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            return -(-size // stride)
        pads = [0] * 2 * rank if automatic == "VALID" else _given(node, "pads", [0] * 2 * rank)
        room = size + pads[axis] + pads[rank + axis] - dilation * (_at(node, "kernel_shape", axis, 1) - 1) - 1
        count = -(-room // stride) + 1
        return int(count - ((count - 1) * stride >= size + pads[axis]))

    rank = len(found) - 2
    return _along(node, found, length) if _given(node, "ceil_mode", 0) else found


def _conv_transpose(node: ir.Node, found: list[Dim]) -> list[Dim]:
    if _given(node, "auto_pad", "NOTSET") not in ("SAME_UPPER", "SAME_LOWER") or "output_shape" in node.attributes:
        return found
    return _along(node, found, lambda axis, size: size * _at(node, "strides", axis, 1))


def _along(node: ir.Node, found: list[Dim], length: Callable[[int, int], int]) -> list[Dim]:
    """Return the shape with the length of each position axis, a function of the input's; unknown where that is."""
    x = dims_of(node.inputs[0])
    if x is None or len(x) != len(found):
        return found
    real = [length(i, d) if isinstance(d, int) else None for i, d in enumerate(x[2:])]
    return [*found[:2], *(_replaced(r, d) for r, d in zip(real, found[2:], strict=True))]


def _resize(node: ir.Node, found: list[Dim]) -> list[Dim]:
    x = dims_of(node.inputs[0])
    place = 1 if len(node.inputs) == 2 else 2
    value = node.inputs[place] if place < len(node.inputs) else None
    held = ir.convenience.get_const_tensor(value) if value is not None else None
    if x is None or held is None or held.size == 0:  # sizes, or scales that are computed
        return found
    axes = [a % len(x) for a in _given(node, "axes", range(len(x)))]
    if held.size != len(axes) or _given(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return [None if isinstance(d, int) and a in axes else d for a, d in enumerate(found)]
    real = list(found)
    for axis, scale in zip(axes, held.numpy().astype(np.float32), strict=True):
        size = x[axis]
        real[axis] = _replaced(int(np.float32(size) * scale) if isinstance(size, int) else None, found[axis])
    return real


def _transform(node: ir.Node, found: list[Dim]) -> list[Dim]:
    return [None if axis == len(found) - 2 else d for axis, d in enumerate(found)]


def _replaced(real: Dim, found: Dim) -> Dim:
    """Return the real length in place of a stated one; what is a name or unknown stays."""
    return real if isinstance(found, int) and real is not None else found


def _given(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _at(node: ir.Node, name: str, axis: int, default: int) -> int:
    given = _given(node, name, ())
    return int(given[axis]) if axis < len(given) else default


_RULES: dict[str, Callable[[ir.Node, list[Dim]], list[Dim]]] = {
    "Einsum": _einsum,
    "PRelu": _slope,
    "AveragePool": _pool,
    "LpPool": _pool,
    "MaxPool": _pool,
    "ConvTranspose": _conv_transpose,
    "Resize": _resize,
    "Upsample": _resize,
    "STFT": _transform,
}
