"""What an operator tells of its own output, or of the affine behind it."""

from __future__ import annotations

import numpy as np

from normfold.export.fold.net import Op
from normfold.export.fold.ops.joins import Sum
from normfold.export.fold.ops.linear import Linear
from normfold.export.fold.ops.pointwise import Activation, Clamp, Same, Scaled, Scaling, Sloped
from normfold.export.fold.ops.pools import Pooling


def tell_usual(op: Op) -> None:
    """Give an affine behind another the usual size of what that one makes, unless its own statistics say less."""
    before = op.inputs[0].producer if op.inputs else None
    if isinstance(op, Scaling) and isinstance(before, Scaling):
        made = np.abs(before.params.scale) * before.params.usual + np.abs(before.params.shift)
        op.params = Scaled.like(op.params, np.minimum(made, op.params.usual) if op.is_batchnorm else made)


def tell_shape(op: Op) -> None:
    """Give the output the shape that follows from the operator, where shape inference gave up."""
    if len(op.outputs) != 1 or op.outputs[0].shape is not None or not op.inputs:
        return
    (y,), x = op.outputs, op.inputs[0]
    if isinstance(op, (Scaling, Clamp, Sloped, Same, Activation)):
        y.shape = x.shape
    elif isinstance(op, Linear) and op.form in ("conv", "transposed"):
        groups, out, _, *taps = op.params.weight.shape
        batch = x.shape[0] if x.shape else f"{y.name}[0]"
        y.shape = (batch, groups * out, *(f"{y.name}[{i + 2}]" for i in range(len(taps))))
    elif isinstance(op, Pooling) and x.shape is not None and not op.drops_axes:
        y.shape = tuple(f"{y.name}[{i}]" if i in op.axes else d for i, d in enumerate(x.shape))
    elif isinstance(op, Sum) and len({z.shape for z in op.inputs}) == 1:
        y.shape = x.shape
