"""Shapes that follow from an operator where shape inference did not find them."""

from __future__ import annotations

from collections.abc import Sequence

from normfold.export.fold.net import Dim, Op


def infer_shape(op: Op) -> None:
    """Give the only output the shape that follows from the operator, where shape inference found none."""
    if len(op.outputs) == 1 and op.outputs[0].shape is None and op.inputs:
        op.outputs[0].shape = op.output_shape()


def infer_lengths(op: Op) -> None:
    """Give the outputs the lengths of the inputs, where inference named them anew or found none."""
    for index, y in enumerate(op.outputs):
        known = _lengths(op, index)
        if known is None:
            continue
        given = y.shape if y.shape is not None and len(y.shape) == len(known) else (None,) * len(known)
        y.shape = tuple(
            size if isinstance(size, int) else found or size or f"{y.name}[{axis}]"
            for axis, (size, found) in enumerate(zip(given, known, strict=True))
        )


def _lengths(op: Op, index: int) -> Sequence[Dim] | None:
    """Return what follows for the lengths of one output, where all inputs have shapes of one rank."""
    shapes = [x.shape for x in op.inputs if x.shape is not None]
    if not shapes or len(shapes) < len(op.inputs) or any(len(shape) != len(shapes[0]) for shape in shapes):
        return None
    return op.lengths(shapes, index)
