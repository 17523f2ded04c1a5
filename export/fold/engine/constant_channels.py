"""Which channels of a tensor always hold one constant."""

from __future__ import annotations

import numpy as np

from normfold.export.fold.affine import Array
from normfold.export.fold.net import Tensor

#: A linear operator further before a tensor is not looked for.
_MOST_STEPS = 8


class ConstantChannels:
    """The constants that channels (axis 1) always hold, followed no further back than the linear operators before."""

    def __init__(self) -> None:
        self._known: dict[Tensor, Array | None] = {}

    def of(self, tensor: Tensor) -> Array | None:
        """Return what each channel of a tensor always holds, NaN where it varies; None where all channels vary."""
        stack = [tensor]
        while stack:
            top = stack[-1]
            op = top.producer
            waiting = [] if op is None or op.constant_by_itself else [x for x in op.inputs if x not in self._known]
            # One branch without constants is enough: the others need not be followed.
            if op is not None and op.constant_if_all_are and any(self._known.get(x, top) is None for x in op.inputs):
                waiting = []
            if waiting:
                # First the branch that is nearest to a linear operator, where its constants are known.
                stack.append(min(waiting, key=_steps))
                continue
            stack.pop()
            if top in self._known:
                continue
            if op is None:
                self._known[top] = None
                continue
            known = {x: held for x in op.inputs if (held := self._known.get(x)) is not None}
            for y, held in zip(op.outputs, op.constants(known), strict=False):
                self._known[y] = None if held is None or np.all(np.isnan(held)) else held
        return self._known[tensor]


def _steps(tensor: Tensor) -> int:
    """Return how many operators of one input lie between a tensor and a linear one before it; at most _MOST_STEPS."""
    steps, op = 0, tensor.producer
    while steps < _MOST_STEPS and op is not None and not op.constant_by_itself:
        steps, op = (steps + 1, op.inputs[0].producer) if len(op.inputs) == 1 else (_MOST_STEPS, None)
    return steps if op is not None else _MOST_STEPS
