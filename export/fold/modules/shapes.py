"""The shapes of all results in a graph of calls, and which of their lengths are dynamic.

The graph runs on the example, and again with one length of the inputs changed at a time. A length that never differs is
a number. Another length is named by its sizes in all runs, so that two lengths of one name were equal in every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from normfold.export.fold.net import Dim


@dataclass(frozen=True)
class Kind:
    """Shape, dtype and device of one tensor."""

    dims: tuple[Dim, ...]
    dtype: torch.dtype
    device: torch.device


#: The kind of a tensor, the kinds of a tuple of tensors, or None for anything else.
Result: TypeAlias = Kind | tuple[Any, ...] | None


@dataclass(frozen=True)
class Shapes:
    """The shapes of the results, and the constant results."""

    results: dict[fx.Node, Result]
    #: The results of calls that read parameters and buffers only, on the CPU.
    constants: dict[fx.Node, torch.Tensor]


class _Run(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule, keep: frozenset[fx.Node]) -> None:
        super().__init__(graph_module)
        self.found: dict[fx.Node, Any] = {}
        self.kept: dict[fx.Node, torch.Tensor] = {}
        self._keep = keep

    def run_node(self, n: fx.Node) -> Any:
        """Run one call and record its result."""
        result = super().run_node(n)
        self.found[n] = _described(result)
        if n in self._keep and isinstance(result, torch.Tensor):
            self.kept[n] = result.detach().cpu()
        return result


def shapes(graph_module: fx.GraphModule, inputs: tuple[Any, ...], constant: frozenset[fx.Node]) -> Shapes:
    """Return the shapes of every call's result, and the values of the calls in ``constant``."""
    with torch.no_grad(), torch.random.fork_rng():
        first = _Run(graph_module, constant)
        first.run(*inputs)
        runs = [first.found]
        free: set[tuple[int, int]] = set()
        for axes in _candidates(inputs):
            if free & set(axes):
                continue
            found = list(_tried(graph_module, inputs, axes))
            if found:
                free |= set(axes)
                runs += found
    return Shapes({n: _named([run[n] for run in runs]) for n in graph_module.graph.nodes}, first.kept)


def _candidates(inputs: Sequence[Any]) -> list[tuple[tuple[int, int], ...]]:
    """Return sets of (input, axis) that may be dynamic together: each alone, then those of equal length."""
    every = [(i, a) for i, x in enumerate(inputs) if isinstance(x, torch.Tensor) for a in range(x.ndim)]
    size = {(i, a): inputs[i].shape[a] for i, a in every}
    sets: list[tuple[tuple[int, int], ...]] = [(one,) for one in every]
    sets += [tuple(o for o in every if o[1] == one[1] and size[o] == size[one]) for one in every]
    sets += [tuple(o for o in every if size[o] == size[one]) for one in every]
    return list(dict.fromkeys(sets))


def _tried(
    graph_module: fx.GraphModule, inputs: Sequence[Any], axes: tuple[tuple[int, int], ...]
) -> Iterator[dict[fx.Node, Any]]:
    """Yield the results of runs with other lengths of these axes; nothing where the network takes no others."""
    i, a = axes[0]
    size = inputs[i].shape[a]
    found = 0
    for other in _others(size):
        if found == 3:
            break
        changed = list(inputs)
        for j, b in axes:
            index = torch.arange(other, device=changed[j].device) % size
            changed[j] = changed[j].index_select(b, index)
        run = _Run(graph_module, frozenset())
        try:
            run.run(*changed)
        except Exception:  # any error means that the network does not take this length
            continue
        found += 1
        yield run.found


def _others(size: int) -> list[int]:
    """Return the lengths to try instead of one, the longer ones first.

    Three lengths in a row distinguish rounding up from rounding down. A network that halves the length a few times and
    joins the halves takes only multiples. One with a table of positions may take no length above the table's. A length
    of 1 says nothing: it may be broadcast to any.
    """
    if size == 0:
        return []
    shorter = [size - 1, size - 2, size - 3, size - 4, size - 8, size - 16, size - 32, size // 2]
    return [size + 1, size + 2, size + 3, 2 * size, 3 * size, *(n for n in dict.fromkeys(shorter) if n > 1)]


def _described(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return Kind(tuple(result.shape), result.dtype, result.device)
    if isinstance(result, (tuple, list)):
        parts = tuple(_described(r) for r in result)
        return parts if any(p is not None for p in parts) else None
    return None


def _named(runs: list[Any]) -> Result:
    """Return one result for those of all runs, with a number or a name for each length."""
    first = runs[0]
    if isinstance(first, Kind):
        if any(not isinstance(r, Kind) or len(r.dims) != len(first.dims) for r in runs):
            return None
        sizes = zip(*(r.dims for r in runs), strict=True)
        dims = tuple(s[0] if len(set(s)) == 1 else "length " + "/".join(map(str, s)) for s in sizes)
        return Kind(dims, first.dtype, first.device)
    if isinstance(first, tuple) and all(isinstance(r, tuple) and len(r) == len(first) for r in runs):
        return tuple(_named(list(parts)) for parts in zip(*runs, strict=True))
    return None
