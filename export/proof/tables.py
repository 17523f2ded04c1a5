"""How far does a table of positions reach? Its end is the largest length of the network, and the proof reads all of it.

A network may look up the numbers of positions 0, 1, 2, … in a table with a row for each. It fails at a length for which
the table has too few rows. And a row that no input of the proof reads would be compared with nothing. Torch notes such
an end where a table is cut to a length. Where rows are looked up, or in an ONNX file, it is found by trying.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import onnx

from normfold.export.inputs.size_steps import last_accepted
from normfold.export.inputs.sizes import CASE_ELEMENTS, Sizes, batch_dimension
from normfold.export.inputs.specs import Dimension, dimensions
from normfold.export.proof.other_paths import with_bound
from normfold.export.proof.paths_at import REFUSED, TOO_LARGE, PathsAt
from normfold.export.proof.verify import Run

__all__ = ["within_tables"]

#: The end is proved, too, if network and graph were compared there within this time: in float64 they take much longer.
QUICK_SECONDS = 0.25
#: A position of a table may stand for up to this many positions of the input, which are pooled before.
POOLED = 4


def within_tables(network: Run, content: bytes, sizes: Sizes, graph: Run) -> Sizes:
    """Return ``sizes`` with the ends that the tables in ``content`` set to lengths without a declared end."""
    if not (rows := _rows(content)):
        return sizes
    paths, trace = PathsAt(network, graph, sizes), sizes.trace
    for d in dimensions(sizes.specs):
        if d.high is not None or d == batch_dimension(sizes.specs):
            continue
        step, known = d.step or 1, max(tried[d.name] for tried in sizes.proof)
        seconds = dict[int, float]()

        def differ(size: int, name: str = d.name, seconds: dict[int, float] = seconds) -> str:
            began = time.perf_counter()
            why = paths.differ({**trace, name: size})
            seconds.setdefault(size, time.perf_counter() - began)
            return why

        high = _end(rows, known, step, differ)
        if high is not None:
            note = f"{d.name} is up to {high}: the network does not run at {d.name} = {high + step}"
            most = min(CASE_ELEMENTS, paths.most) if seconds[high] <= QUICK_SECONDS else 0
            sizes = with_bound(sizes, Dimension(d.name, d.low, high, d.step), note, most)
    return sizes


def _end(rows: int, known: int, step: int, differ: Callable[[int], str]) -> int | None:
    """Return the largest size, in steps from ``known``, at which the network runs; None: no end was found.

    Mostly it is the number of rows.
    """

    def runs(size: int) -> bool:
        return differ(size) != REFUSED

    if differ(rows) == TOO_LARGE:
        return None
    if rows >= known and (rows - known) % step == 0 and runs(rows) and not runs(rows + step):
        return rows
    beyond = next((size for size in _doubled(known, step, POOLED * rows) if not runs(size)), None)
    return None if beyond is None else last_accepted(range(known, beyond, step), runs)


def _doubled(size: int, step: int, most: int) -> Iterator[int]:
    """Yield about twice the size, and so on, until one is beyond ``most``; each is whole steps from ``size``."""
    while size <= most:
        size += max(1, size // step) * step
        yield size


def _rows(content: bytes) -> int:
    """Return the longest side of the tables of which rows are taken by sizes of the input alone; 0 if there is none."""
    graph = onnx.load_model_from_string(content).graph
    tables = {tensor.name: max(tensor.dims, default=0) for tensor in graph.initializer}
    from_sizes, found = set[str](), 0
    for node in graph.node:  # each behind those that it reads
        if node.op_type == "Constant":
            tables[node.output[0]] = max((side for a in node.attribute for side in a.t.dims), default=0)
            continue
        computed = {name for name in node.input if name} - tables.keys()
        sized = bool(computed) and computed <= from_sizes
        if sized and node.op_type in ("Gather", "Slice") and node.input[0] in tables:
            found = max(found, tables[node.input[0]])
        elif sized or node.op_type in ("Shape", "Size"):
            from_sizes.update(node.output)
    return found
