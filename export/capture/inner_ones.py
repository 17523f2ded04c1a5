"""Sizes to trace at, where no size inside the network is 1 that is more at other sizes.

torch takes a size of 1 for a constant. An output of length 1 then fixes the length, or makes a graph that is right at
this length only. A network of convolutions without padding has it at the smallest length that it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from normfold.export.capture.named_network import NamedNetwork
from normfold.export.inputs.sizes import CASE_ELEMENTS, batch_dimension
from normfold.export.inputs.specs import InputSpec, dimensions

__all__ = ["without_inner_ones"]

#: How often the sizes are doubled.
MOST_TRIES = 4

Sizes = Mapping[str, int]


def without_inner_ones(
    network: NamedNetwork, draw: Callable[[Sizes], Sequence[Tensor]], specs: Sequence[InputSpec], sizes: Sizes
) -> Sizes:
    """Return ``sizes``, or multiples of them, at which no inner size of the network is 1 by chance.

    draw(sizes) returns inputs. The network is left as it was found.
    """
    traced, found = sizes, None
    for _ in range(MOST_TRIES):
        wider = _doubled(specs, traced)
        if wider == traced or max(prod(s.shape(wider)) for s in specs) > CASE_ELEMENTS:
            break
        found = _shapes(network, draw(traced)) if found is None else found
        if found is None or not any(1 in shape for _, shape in found):
            break
        more = _shapes(network, draw(wider))
        if more is None or not _ones(found, more):
            break
        traced, found = wider, more
    return traced


def _doubled(specs: Sequence[InputSpec], sizes: Sizes) -> Sizes:
    """Return twice the sizes of all dimensions but the batch, as far as the ranges and steps of the inputs allow."""
    batch, doubled = batch_dimension(specs), dict(sizes)
    for d in dimensions(specs):
        if d != batch:
            size, step = sizes[d.name], d.step or 1
            steps = -(-size // step)
            if d.high is not None:
                steps = min(steps, max(0, (d.high - size) // step))
            doubled[d.name] = size + steps * step
    return doubled


def _shapes(network: NamedNetwork, inputs: Sequence[Tensor]) -> list[tuple[object, torch.Size]] | None:
    """Return the shape of every tensor that torch's functions give inside the network; None where it does not run."""
    recorder = _Recorder()
    try:
        with network.held.kept(), recorder:
            network.call(inputs)
    except Exception:  # whatever the user's code raises where it does not take these sizes
        return None
    return recorder.found


def _ones(found: Sequence[tuple[object, torch.Size]], wider: Sequence[tuple[object, torch.Size]]) -> bool:
    """Whether a size is 1 in ``found`` and more in ``wider``, where the network takes the same path in both."""
    if [(call, len(shape)) for call, shape in found] != [(call, len(shape)) for call, shape in wider]:
        return False
    return any(
        a == 1 < b for (_, shape), (_, more) in zip(found, wider, strict=True) for a, b in zip(shape, more, strict=True)
    )


class _Recorder(TorchFunctionMode):
    """Notes each call of a function of torch that gives tensors, and their shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[object, torch.Size]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        self.found += [(func, leaf.shape) for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
        return returned
