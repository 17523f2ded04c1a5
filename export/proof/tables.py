"""How far does a table of positions reach? Its end is the largest length of the network, and the proof reads all of it.

A network may look up the numbers of positions 0, 1, 2, … in a table with a row for each. It fails at a length for which
the table has too few rows. And a row that no input of the proof reads would be compared with nothing. Torch notes such
an end where a table is cut to a length. Where rows are looked up, or in an ONNX file, it is found by trying.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from normfold.export.inputs.size_steps import last_accepted
from normfold.export.inputs.sizes import CASE_ELEMENTS, Sizes, batch_dimension
from normfold.export.inputs.specs import Dimension, dimensions
from normfold.export.proof.other_paths import with_bound
from normfold.export.proof.paths_at import REFUSED, PathsAt
from normfold.export.proof.verify import Run

__all__ = ["within_tables"]

#: A position of a table may stand for up to this many positions of the input, which are pooled before.
POOLED = 4


def within_tables(network: Run, content: bytes, sizes: Sizes, graph: Run) -> Sizes:
    """Return ``sizes`` with the ends that the tables in ``content`` set to lengths without a declared end."""
    most = POOLED * _rows(content)
    paths, trace = PathsAt(network, graph, sizes), sizes.trace
    for d in dimensions(sizes.specs):
        if d.high is not None or d == batch_dimension(sizes.specs):
            continue
        step, known = d.step or 1, max(tried[d.name] for tried in sizes.proof)

        def takes(size: int, name: str = d.name) -> bool:
            return paths.differ({**trace, name: size}) != REFUSED

        beyond = next((n for n in _doubled(known, step, most) if not takes(n)), None)
        if beyond is not None:
            high = last_accepted(range(known, beyond, step), takes)
            note = f"{d.name} is up to {high}: the network does not run at {d.name} = {high + step}"
            sizes = with_bound(sizes, Dimension(d.name, d.low, high, d.step), note, min(CASE_ELEMENTS, paths.most))
    return sizes


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
