"""Which sizes a network takes, and which of them its captured graph takes as it does.

A network may go another way below some size: squeeze a length of 1, pad what is too short. A graph holds one way only,
that of the sizes it was traced with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from normfold.export.errors import CaptureError, ExportError
from normfold.export.inputs.blocks import Blocks, sizes_around_blocks
from normfold.export.inputs.samples import sample_sizes
from normfold.export.inputs.sizes import CASE_ELEMENTS, Attempt, Sizes, find_sizes
from normfold.export.inputs.specs import dimensions
from normfold.export.proof.numbers import drawn, numberless
from normfold.export.proof.verify import Case
from normfold.export.sources.origin import Arrays, Origin, Run

__all__ = ["sizes_of", "sizes_of_both"]


def sizes_of(origin: Origin, samples: Sequence[Case] = ()) -> Sizes:
    """Try sizes on the network itself; the samples' own are tried first."""

    def attempt(sizes: Mapping[str, int]) -> None:
        _answer(origin, sizes)

    return _found(origin, samples, attempt)


def sizes_of_both(
    origin: Origin, samples: Sequence[Case], sizes: Sizes, graph: Run, splits: Sequence[Blocks] = ()
) -> Sizes:
    """Return ``sizes`` with the lower bounds that were found by trying raised to where the graph follows the network.

    ``splits`` are the blocks that the network works in: their sizes are proved too. Raises InputSpecError where a
    declared bound is below the raised one, CaptureError where several blocks cannot be tried. Sizes above the bounds
    are kept, for the proof to judge.
    """
    sizes = _with_blocks(origin, sizes, splits)

    def attempt(tried: Mapping[str, int]) -> None:
        inputs, wanted = _answer(origin, tried)
        got = graph(inputs)
        for name, array in wanted.items():
            if got[name].shape != array.shape:
                traced = ", ".join(f"{k}={v}" for k, v in sizes.trace.items())
                raise CaptureError(
                    f"output '{name}' has the shape {list(array.shape)}, and {list(got[name].shape)} in the graph that "
                    f"was captured at {traced}, so the network takes another path there"
                )

    try:
        for tried in sizes.proof:
            attempt(tried)
    except Exception:
        found = _found(origin, samples, attempt)
    else:
        return sizes
    if found.trace != sizes.trace:
        return sizes  # the graph does not even take what it was traced with: that is no question of bounds
    ends = {d.name: (d.high, d.step or 1) for d in dimensions(sizes.specs)}
    if any((d.high, d.step or 1) != ends[d.name] for d in dimensions(found.specs)):
        return sizes  # an end above, or steps: the conditions noted at the capture say why, and which
    low = {d.name: d.low or 1 for d in dimensions(found.specs)}
    before = {d.name: d.low or 1 for d in dimensions(sizes.specs)}
    above = [s for s in sizes.proof if all(s[name] >= size for name, size in low.items())]
    raised = "; ".join(
        f"{name} is from {size}: below, down to {before[name]}, the network takes another path than its graph"
        for name, size in low.items()
        if size > before[name]
    )
    proof = [*found.proof, *(s for s in above if s not in found.proof)]
    return replace(found, proof=tuple(proof), notes=(*found.notes, *([raised] if raised else [])))


def _with_blocks(origin: Origin, sizes: Sizes, splits: Sequence[Blocks]) -> Sizes:
    proof = list(sizes.proof)
    for blocks in splits:
        around = sizes_around_blocks(blocks, origin.specs, sizes.trace, CASE_ELEMENTS)
        proof += [tried for tried in around if tried not in proof and _runs(origin, tried)]
        if all(blocks.size(tried) <= blocks.each for tried in proof):
            raise CaptureError(f"with more than one block of {blocks.each} the network could not be tried")
    return replace(sizes, proof=tuple(proof))


def _runs(origin: Origin, sizes: Mapping[str, int]) -> bool:
    try:
        _answer(origin, sizes)
    except Exception:  # whatever the user's code raises where it does not take these sizes
        return False
    return True


def _answer(origin: Origin, sizes: Mapping[str, int]) -> tuple[Arrays, Arrays]:
    """Return random inputs and the network's answer. Raises whatever it raises where it does not take these sizes.

    Raises ExportError for an ONNX file of which an output has no numbers here, and numbers alone at other sizes:
    onnxruntime gives NaN or infinity where a length is too short.
    """
    inputs = drawn(origin, origin.specs, sizes)
    answer = origin.run(inputs)
    names = [name for name in numberless(answer) if name in origin.gives_numbers]
    if origin.content is not None and names:
        shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in inputs.items())
        raise ExportError(f"output '{names[0]}' is NaN or infinite in every entry on {shapes}")
    return inputs, answer


def _found(origin: Origin, samples: Sequence[Case], attempt: Attempt) -> Sizes:
    sampled = [sample_sizes(c.inputs, origin.specs, c.name) for c in samples]
    sampled += [dict(origin.numbers_at)] if origin.numbers_at else []
    return find_sizes(origin.specs, attempt, sampled, origin.captured)
