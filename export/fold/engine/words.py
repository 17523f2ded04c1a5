"""Sentences of the report: where a fold took an affine, or why the affine stays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from normfold.counting import counted, listed
from normfold.export.fold.engine.plan import ALL, FoldPlan, Refusals
from normfold.export.fold.net import QUANTIZED, Op
from normfold.export.fold.number_readers import number_readers
from normfold.export.fold.ops.scaling import Scaling

#: Where there are more names, the others are only counted.
MOST_NAMES = 4


def went(plan: FoldPlan) -> str:
    """Return where a plan took its affine ("forward into 'conv2'; 'conv2' reads the shift from a carrier channel")."""
    into = [op for op in plan.touched if op.takes_affines]
    before = [op for op in into if op.order < plan.target.order]
    behind = [op for op in into if op.order > plan.target.order]
    option = plan.option
    words, adjusted = [], []
    for part, way, ops in ((option.goes_back, "back", before), (option.goes_forward, "forward", behind)):
        if part:
            words.append(" ".join([*([part] if part != ALL else []), way, *([f"into {_names(ops)}"] if ops else [])]))
        else:
            adjusted += ops
    if option.left:
        words.append(f"{option.left} stays")
    sentences = [", ".join(words)]
    if adjusted:
        sentences.append(f"{_names(adjusted)} {'is' if len(adjusted) == 1 else 'are'} adjusted to it")
    if plan.carried:
        reads = "reads" if len(plan.carried) == 1 else "read"
        sentences.append(f"{_names(plan.carried)} {reads} the shift from a carrier channel")
    sentences += [f"'{op.name}' becomes {op.by_channel_form}" for op in plan.touched if op.by_channel_form]
    return "; ".join(sentences)


def refused(target: Scaling, refusals: Refusals) -> list[str]:
    """Return why an affine stays: each reason once, with the ways that were tried, and at last what a person can do."""
    ways: dict[str, list[str]] = defaultdict(list)
    for label, reason in refusals.items():
        ways[reason].append(label)
    between = _between(target)
    reasons = [f"{reason} (tried: {labels[0]}{_more(len(labels) - 1)})" for reason, labels in ways.items()]
    return [*([between] if between else []), *reasons, _advice(target, refusals)]


def _advice(target: Scaling, refusals: Refusals) -> str:
    if refusals.by_cost:
        return "to fold it all the same, although that is slower here: --fold-all, or in Python fold_all=True"
    kind = "BatchNorm" if target.is_batchnorm else "scaling"
    if any(reason.endswith(QUANTIZED) for reason in refusals.values()):
        return f"export the network in float32, fold its {kind}s, and quantize the folded file"
    return f"train with the {kind} directly behind a convolution or Linear that nothing else reads: there it folds"


def _more(ways: int) -> str:
    return f"; and {counted(ways, 'more way')}" if ways else ""


def _between(target: Scaling) -> str:
    """Return the sentence for an affine between a tensor with other readers and a smooth activation, else ""."""
    (u,), (y,) = target.inputs, target.outputs
    others = [op for op in number_readers(u) if op is not target]
    behind = list(y.readers)
    for op in behind:
        if op.is_identity:
            behind += op.outputs[0].readers
    smooth = next((op for op in behind if op.is_smooth), None)
    if u.producer is None or smooth is None or not others:
        return ""
    kind = "BatchNorm" if target.is_batchnorm else "scaling"
    readers = f"{others[0]} and other operators read" if others[1:] else f"{others[0]} reads"
    return (
        f"{readers} the output of {u.producer} without the {kind}, and {smooth} behind the {kind} is smooth: "
        f"f(s x + t) is no multiple of f(x), so no other weights can replace the {kind}"
    )


def _names(ops: Sequence[Op]) -> str:
    return listed(list(dict.fromkeys(f"'{op.name}'" for op in ops)), MOST_NAMES)
