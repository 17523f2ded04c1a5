"""Masks as real inputs have them: the padding of each row behind its end.

Random booleans are no such mask, and a network may compute both in different ways: torch's nn.TransformerEncoder leaves
padding out, and writes zeros there, only where it is at the end of each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.inputs.specs import InputSpec
from normfold.export.proof.verify import Arrays, Case

__all__ = ["mask_cases"]


def mask_cases(specs: Sequence[InputSpec], drawn: Arrays, rng: np.random.Generator) -> Iterator[Case]:
    """Yield ``drawn`` with such masks in its boolean inputs of several axes: true in the padding, and false there.

    Each row has an element and padding: no network gives numbers of any meaning for a row of padding alone, and which
    rows these are depends on the network's convention. There is no case without such inputs, where their rows have one
    element, or where their values are given.
    """
    masks = [
        s.name
        for s in specs
        if s.datatype.name == "BOOL" and len(s.dims) > 1 and s.values is None and drawn[s.name].shape[-1] > 1
    ]
    if masks:
        padding = {name: _padding(drawn[name].shape, rng) for name in masks}
        yield Case("masks", "padding is true", {**drawn, **padding})
        yield Case("masks", "padding is false", {**drawn, **{name: ~array for name, array in padding.items()}})


def _padding(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    *rows, length = shape
    lengths = rng.integers(1, length, size=rows)
    return np.asarray(np.arange(length) >= lengths[..., None])
