"""Where a fold took an affine, in words."""

from __future__ import annotations

from collections.abc import Sequence

from normfold.export.fold.net import Op
from normfold.export.fold.ops.linear import Embedding, Linear, Recurrent
from normfold.export.fold.ops.pointwise import Clamp, Scaling
from normfold.export.fold.plan import Plan

#: More names than these are counted instead.
MOST_NAMES = 4


def went(plan: Plan) -> str:
    """Return where a plan took its affine ("forward into 'conv2'; 'conv2' reads the shift from a carrier channel")."""
    into = [op for op in plan.touched if isinstance(op, (Linear, Scaling, Embedding, Recurrent))]
    before = _names([op for op in into if op.order < plan.target.order])
    behind = _names([op for op in into if op.order > plan.target.order])
    label = plan.option.label
    if label == "back" and before and not behind:
        words = f"back into {before}"
    elif label == "on" and behind and not before:
        words = f"forward into {behind}"
    else:
        places = [f"back into {before}"] if before else []
        places += [f"forward into {behind}"] if behind else []
        words = f"{label}: {', '.join(places)}" if places else label
    if plan.carried:
        words += f"; {_names(plan.carried)} reads the shift from a carrier channel"
    for op in plan.touched:
        if isinstance(op, Clamp) and op.params.form in ("Max", "Min", "Max, Min"):
            words += f"; '{op.name}' becomes {op.params.form}"
    return words


def _names(ops: Sequence[Op]) -> str:
    names = list(dict.fromkeys(f"'{op.name}'" for op in ops))
    if len(names) > MOST_NAMES:
        return f"{', '.join(names[:MOST_NAMES])} and {len(names) - MOST_NAMES} more"
    return ", ".join(names)
