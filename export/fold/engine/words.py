"""Where a fold took an affine, or what kept it, in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from normfold.export.fold.engine.plan import Plan
from normfold.export.fold.net import Op
from normfold.export.fold.ops.activations import Activation, Clamp, Same, Scaling
from normfold.export.fold.ops.linear import Embedding, Linear, Recurrent

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


def refused(target: Scaling, refusals: Mapping[str, str]) -> list[str]:
    """Return why an affine stays, each reason once, from what refused the ways that were tried."""
    ways: dict[str, list[str]] = defaultdict(list)
    for label, reason in refusals.items():
        ways[reason].append(label)
    between = _between(target)
    return ([between] if between else []) + [
        f"{labels[0]}{_more(len(labels) - 1)}: {reason}" for reason, labels in ways.items()
    ]


def _more(ways: int) -> str:
    return f" and {ways} more way{'s' if ways > 1 else ''}" if ways else ""


def _between(target: Scaling) -> str:
    """Return the sentence for an affine between a tensor that others read and a smooth activation, else ""."""
    (u,), (y,) = target.inputs, target.outputs
    others = [op for op in u.readers if op is not target]
    behind = list(y.readers)
    for op in behind:
        if isinstance(op, Same):
            behind += op.outputs[0].readers
    smooth = next((op for op in behind if isinstance(op, Activation)), None)
    if u.producer is None or smooth is None or not others:
        return ""
    kind = "BatchNorm" if target.is_batchnorm else "scaling"
    readers = f"{others[0]}{' and others' if others[1:] else ''}"
    return (
        f"what {u.producer} computes is read by {readers} as it is, and {smooth} behind the {kind} is smooth: "
        f"f(s x + t) is no scaled f(x), so no weights around can stand for the {kind}"
    )


def _names(ops: Sequence[Op]) -> str:
    names = list(dict.fromkeys(f"'{op.name}'" for op in ops))
    if len(names) > MOST_NAMES:
        return f"{', '.join(names[:MOST_NAMES])} and {len(names) - MOST_NAMES} more"
    return ", ".join(names)
