"""Sizes at which a network takes another path than its captured graph: the graph is published for the others.

The guards that were noted at the capture say where such sizes may be. Network and graph are run there. Many guards are
about nothing but memory, and both give the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice, product
from math import prod

from normfold.export.errors import CaptureError, InputSpecError
from normfold.export.inputs.guards import Guard, nearby
from normfold.export.inputs.sizes import CASE_ELEMENTS, Sizes
from normfold.export.inputs.specs import MAX_ELEMENTS, Dimension, dimensions
from normfold.export.proof.paths_at import REFUSED, TOO_LARGE, PathsAt
from normfold.export.sources.origin import Origin, Run

__all__ = ["with_bound", "within_one_path"]

#: Of the sizes that break a guard, this many are tried beside the first and the last, ...
MORE = 8
#: ... up to this many times the traced one.
FAR = 8


@dataclass(frozen=True)
class _Gaps:
    """A guard that no smallest and largest sizes can keep."""

    #: The guard, where it is broken, and in what network and graph differ there.
    reason: str
    #: Dimensions in steps that keep the guard, if there are any.
    steps: tuple[Dimension, ...] = ()
    #: Else what to write into --input.
    declare: str = ""
    #: The dimension, where it is about one: forward() may pad it.
    name: str = ""


def within_one_path(origin: Origin, sizes: Sizes, guards: Sequence[Guard], graph: Run) -> Sizes:
    """Return ``sizes`` with bounds where the network takes another path below or above them.

    Raises InputSpecError where a declared range goes further, CaptureError where no bounds can say at which sizes a
    guard holds, or where a guard is about several dimensions. All dimensions are named, in steps that keep all guards.
    """
    paths = PathsAt(origin.run, graph, sizes)
    gaps: dict[str, _Gaps] = {}
    for guard, upwards in product((g for g in guards if len(g.names) == 1), (True, False)):
        if guard.names[0] not in gaps:
            found = _bounded_by(origin, paths, sizes, guard, upwards, guards)
            if isinstance(found, _Gaps):
                gaps[found.name] = found
            else:
                sizes = found
    kept = _with_steps(sizes, [d for gap in gaps.values() for d in gap.steps])
    together: list[_Gaps] = []
    # Dimensions with a condition that no steps keep: one such condition on them is in the message, and no more.
    without_steps: set[tuple[str, ...]] = set()
    for guard in (g for g in guards if len(g.names) > 1):
        if guard.names not in without_steps and (broken := _together(paths, kept, guard)):
            together.append(broken)
            kept = _with_steps(kept, broken.steps)
            if not broken.steps:
                without_steps.add(guard.names)
    if found_gaps := [*gaps.values(), *together]:
        raise CaptureError(_message(found_gaps))
    return sizes


def _with_steps(sizes: Sizes, steps: Sequence[Dimension]) -> Sizes:
    """Return ``sizes`` as if the user had declared these steps."""
    declared: dict[str, int | Dimension] = {d.name: d for d in steps}
    return replace(
        sizes,
        specs=tuple(
            replace(s, dims=tuple(d if isinstance(d, int) else declared.get(d.name, d) for d in s.dims))
            for s in sizes.specs
        ),
    )


def _message(gaps: Sequence[_Gaps]) -> str:
    names = [gap.name for gap in gaps if gap.name]
    text = f"the graph holds the network only while {'; and only while '.join(gap.reason for gap in gaps)}. "
    if names:
        ranges = " and ".join(f"a smallest to a largest {name}" for name in names)
        text += (
            f"That is no range from {ranges}. Write forward() so that it does the same at every size: padding by 0 "
            "entries changes nothing, so padding to a multiple of k needs no 'if' where it is by "
            f"-{names[0]} % k entries, not by k - {names[0]} % k. Or declare "
        )
    else:
        text += "Declare "
    steps = {d.name: d for gap in gaps for d in gap.steps}  # of one dimension the last: in these all guards are kept
    declare = [f"in steps: {' and '.join(map(str, steps.values()))}"] if steps else []
    declare += dict.fromkeys(gap.declare for gap in gaps if gap.declare)
    return f"{text}sizes where that holds in --input, {' and '.join(declare)}"


def _bounded_by(
    origin: Origin, paths: PathsAt, sizes: Sizes, guard: Guard, upwards: bool, guards: Sequence[Guard]
) -> Sizes | _Gaps:
    """Return ``sizes`` with a bound above (or else below) the traced one, if the guard is broken there and it matters.

    Downwards, network and graph are run at the smallest size that breaks it, too: where the answer is a mean over all
    positions, other numbers at one of them show best in short inputs.
    """
    (name,) = guard.names
    d = next(d for d in dimensions(sizes.specs) if d.name == name)
    broken = _breaks(sizes, guard, d, upwards)
    at, why = _differs(paths, sizes, guard, d, broken, guards)
    if not why:
        return sizes
    reason = f"{guard.text}: at {name} = {at} {why}"
    if len(broken) > 1:
        steps = _in_steps(paths, sizes, guard, d, guards)
        if steps:
            return _Gaps(reason, (steps,), name=name)
        return _Gaps(reason, declare=_around(sizes, guard, d, guards), name=name)
    step = d.step or 1
    high, low = (broken[0] - step, d.low) if upwards else (d.high, broken[0] + step)
    bounded = Dimension(name, low, high, d.step)
    declared = next(given for given in dimensions(origin.specs) if given.name == name)
    if declared.high if upwards else declared.low:
        raise InputSpecError(
            f"dimension '{d}' is declared {f'up to {d.high}' if upwards else f'from {d.low}'}, but the graph holds the "
            f"network only while {reason}. Declare {bounded}"
        )
    bound = f"{name} is {'up to' if upwards else 'from'} "
    sizes = replace(sizes, notes=tuple(note for note in sizes.notes if not note.startswith(bound)))  # a wider one
    note = f"{bound}{high if upwards else low}, while {reason}"
    if upwards and not declared.low and why not in (REFUSED, TOO_LARGE):
        note += f"; to export the other path, declare {Dimension(name, broken[0])} in --input"
    return with_bound(sizes, bounded, note, min(CASE_ELEMENTS, paths.most))


def _breaks(sizes: Sizes, guard: Guard, d: Dimension, upwards: bool) -> list[int]:
    """Return the sizes of ``d`` above the traced one, or else below it, that break a guard: see ``Guard.breaks``."""
    return list(guard.breaks(sizes.trace, d.name, _most(sizes, d) if upwards else d.low or 1, d.step or 1))


def _differs(
    paths: PathsAt, sizes: Sizes, guard: Guard, d: Dimension, broken: Sequence[int], guards: Sequence[Guard]
) -> tuple[int, str]:
    """Return the size, of those that break a guard, at which network and graph differ, and in what; (0, "") if none.

    ``broken`` are these sizes of ``d``, all above the traced one or all below it.

    At the first of them they may be alike by chance: what one padding adds too much, the next one would have added. So
    they are compared at more. Where they differ there, it may be for another guard, which says more about it.
    """
    at, why = _first_other(paths, sizes, d, broken)
    if why:
        return at, why
    near = [size for size in broken[1:] if size <= FAR * sizes.trace[d.name]]
    for size in sorted(random.Random(0).sample(near, min(MORE, len(near)))):
        there = {**sizes.trace, d.name: size}
        if (other := paths.differ(there)) in ("", TOO_LARGE):
            continue
        also = [g for g in guards if g.names == guard.names and g is not guard and not g.holds(there)]
        upwards = size > sizes.trace[d.name]
        if not any(_first_other(paths, sizes, d, _breaks(sizes, g, d, upwards))[1] for g in also):
            return size, other
    return 0, ""


def _first_other(paths: PathsAt, sizes: Sizes, d: Dimension, broken: Sequence[int]) -> tuple[int, str]:
    """Return the first of these sizes, or below the traced one the last, at which the two differ, and in what."""
    tried = dict.fromkeys([*broken[:1], *(size for size in broken[-1:] if size < sizes.trace[d.name])])
    return next(((size, why) for size in tried if (why := paths.differ({**sizes.trace, d.name: size}))), (0, ""))


def _in_steps(paths: PathsAt, sizes: Sizes, guard: Guard, d: Dimension, guards: Sequence[Guard]) -> Dimension | None:
    """Return ``d`` in steps at which ``guard`` and all others like it hold; None: none found.

    A network may pad an odd length at each of four pools. One message names the steps that suit all four of them.
    """
    steps = guard.in_steps(sizes.trace, d)
    for other, upwards in product((o for o in guards if o.names == guard.names and o is not guard), (True, False)):
        if not steps:
            return None
        broken = _breaks(sizes, other, steps, upwards)
        if not _differs(paths, sizes, other, steps, broken, guards)[1]:
            continue
        if len(broken) > 1:
            guard = guard.and_(other)
        elif upwards:
            d = replace(d, high=broken[0] - 1)
        else:
            d = replace(d, low=broken[0] + 1)
        steps = guard.in_steps(sizes.trace, d)
    return steps


def _around(sizes: Sizes, guard: Guard, d: Dimension, guards: Sequence[Guard]) -> str:
    """Return ``d`` with the sizes around the traced one at which all guards about it hold, as advice."""
    whole = reduce(Guard.and_, (each for each in guards if each.names == (d.name,)))
    step = d.step or 1
    below, above = (next(iter(_breaks(sizes, whole, d, upwards)), None) for upwards in (False, True))
    low, high = (d.low if below is None else below + step), (d.high if above is None else above - step)
    advice = f"such as {Dimension(d.name, low, high, d.step)}"
    if not guard.in_steps(sizes.trace, d):
        return advice
    return (
        f"{advice}: at {d.name} = {sizes.trace[d.name]} no steps were found that keep all conditions. Where forward() "
        f"pads nothing there may be some: for pools of 5, 4, 3 and 2 they are {d.name}:120..:120"
    )


def _most(sizes: Sizes, d: Dimension) -> int:
    """The largest size of a dimension that is looked at: the declared one, or the largest that an input can have."""
    having = (s for s in sizes.specs if d.name in {e.name for e in dimensions([s])})
    rest = max(prod(s.shape({**sizes.trace, d.name: 1})) for s in having)
    return min(d.high or MAX_ELEMENTS, max(sizes.trace[d.name], MAX_ELEMENTS // max(1, rest)))


def _together(paths: PathsAt, sizes: Sizes, guard: Guard) -> _Gaps | None:
    """Return where a guard about several dimensions is broken within their ranges, if that matters."""
    for broken in _broken_together(sizes, guard):
        if paths.elements(broken) > MAX_ELEMENTS or not all(d.holds(broken[d.name]) for d in dimensions(sizes.specs)):
            continue
        if not (why := paths.differ(broken)):
            continue
        at = ", ".join(f"{name}={broken[name]}" for name in guard.names)
        steps = guard.in_steps_together(sizes.trace, [d for d in dimensions(sizes.specs) if d.name in guard.names])
        return _Gaps(f"{guard.text}: at {at} {why}", steps, "" if steps else _ranges(guard, sizes.trace))
    return None


def _ranges(guard: Guard, trace: Mapping[str, int]) -> str:
    """Return what to declare for a guard about several dimensions that no steps keep."""
    ranges = (Dimension(name, trace[name], trace[name]) for name in guard.names)
    return f"as ranges for {' and '.join(guard.names)}" + (
        f", here one size each: {' and '.join(map(str, ranges))}" if " == " in guard.text else ""
    )


def _broken_together(sizes: Sizes, guard: Guard) -> Iterator[dict[str, int]]:
    """Yield sizes that break a guard about several dimensions.

    They are all larger, then one of them larger, or smaller, then any that are a little larger: H·W is odd only where
    both are.
    """
    dims = [d for d in dimensions(sizes.specs) if d.name in guard.names]
    if together := guard.broken_together(sizes.trace, dims, MAX_ELEMENTS):
        yield together
    for d in dims:
        for end in (_most(sizes, d), d.low or 1):
            if size := next(guard.breaks(sizes.trace, d.name, end, d.step or 1), 0):
                yield {**sizes.trace, d.name: size}
    near = ({**sizes.trace, **tried} for tried in nearby(sizes.trace, dims))
    yield from islice((tried for tried in near if not guard.holds(tried)), 1)


def with_bound(sizes: Sizes, bounded: Dimension, note: str, most: int) -> Sizes:
    """Return ``sizes`` with ``bounded`` in place of the dimension of that name.

    Its ends are proved, too, where no input has more than ``most`` elements.
    """

    def replaced(d: int | Dimension) -> int | Dimension:
        return bounded if isinstance(d, Dimension) and d.name == bounded.name else d

    specs = tuple(replace(s, dims=tuple(map(replaced, s.dims))) for s in sizes.specs)
    ends = [{**sizes.trace, bounded.name: end} for end in (bounded.low, bounded.high) if end]
    proof = [{**tried, bounded.name: _within(bounded, tried[bounded.name])} for tried in sizes.proof]
    proof += [tried for tried in ends if max(prod(s.shape(tried)) for s in specs) <= most]
    once = tuple(tried for place, tried in enumerate(proof) if tried not in proof[:place])
    return replace(sizes, specs=specs, proof=once, notes=(*sizes.notes, note))


def _within(d: Dimension, size: int) -> int:
    """Return the size of ``d`` next to ``size``."""
    return max(d.low or 1, size if d.high is None else min(size, d.high))
