"""A graph as an SVG drawing: nodes from top to bottom, parallel branches beside each other.

Each BatchNorm has a number in the graph before a fold; the nodes whose weights took it have it in the graph after.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import onnx_ir as ir

from normfold.export.fold.reading import module_of
from normfold.export.fold.report import Fold

__all__ = ["MOST_NODES", "STYLE", "Box", "before_and_after", "boxes", "drawing", "numbers"]

#: Larger graphs are not drawn: nobody could read them.
MOST_NODES = 300
_WIDTH, _HEIGHT, _STEP, _GAP, _MARGIN = 158, 36, 54, 14, 14
#: Characters of a line in a box.
_LETTERS = 24
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN")
_CLAMPS = ("Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Sigmoid", "Tanh", "Softmax", "Gelu", "HardSwish", "Erf")
#: The colours of the boxes, light and dark; in the drawing itself, so that it needs no other file.
STYLE = """<style>
.net text { font: 12px system-ui, sans-serif; fill: #1f2328; } .net .name { font-weight: 600; }
.net rect { stroke: #6e7781; fill: #f3f4f6; } .net .linear rect { fill: #d6e6f5; } .net .norm rect { fill: #f9cfb0; }
.net .clamp rect { fill: #dff0d3; } .net path { fill: none; stroke: #6e7781; stroke-width: 1.3; }
.net .number { fill: #ffffff; font-weight: 700; font-size: 11px; text-anchor: middle; }
@media (prefers-color-scheme: dark) {
  .net text { fill: #e6edf3; } .net rect { stroke: #8b949e; fill: #30363d; } .net .linear rect { fill: #1f3f5f; }
  .net .norm rect { fill: #6b3415; } .net .clamp rect { fill: #2b4420; } .net path { stroke: #8b949e; }
  .net .number { fill: #ffffff; }
}
</style>"""


@dataclass(frozen=True)
class Box:
    """One node: its name, what it computes, its kind (a class of STYLE), and the boxes that it reads, by number."""

    name: str
    text: str
    kind: str
    reads: tuple[int, ...]


def boxes(graph: ir.Graph, folds: Sequence[Fold] = ()) -> list[Box]:
    """Return a box for each node in order. An affine of ``folds`` has the kind of a BatchNorm."""
    affines = {fold.name for fold in folds if fold.kind == "affine"}
    nodes = [node for node in graph if node.op_type != "Constant"]
    made = {id(output): number for number, node in enumerate(nodes) for output in node.outputs}
    found = []
    for node in nodes:
        name = module_of(node)
        is_norm = node.op_type == "BatchNormalization" or {name, node.name} & affines
        kind = "norm" if is_norm else "linear" if node.op_type in _LINEAR else ""
        reads = dict.fromkeys(made[id(value)] for value in node.inputs if id(value) in made)
        if kind and not name:
            name = node.name or ""
        kind = kind or ("clamp" if node.op_type in _CLAMPS else "other")
        found.append(Box(name, _computes(node), kind, tuple(reads)))
    return found


def numbers(folds: Sequence[Fold]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the numbers of the BatchNorms by name, and those of the BatchNorms that each node took, by its name."""
    before = {fold.name: str(number) for number, fold in enumerate(folds, 1)}
    after: dict[str, list[str]] = {}
    for fold in folds:
        for reader in dict.fromkeys(re.findall(r"'([^']+)'", fold.how)):
            after.setdefault(reader, []).append(before[fold.name])
    return before, {name: ", ".join(taken) for name, taken in after.items()}


def before_and_after(before: ir.Graph, after: ir.Graph, folds: Sequence[Fold]) -> tuple[str, str] | None:
    """Return both drawings with the numbers of the BatchNorms; None for graphs too large to be read."""
    drawn = boxes(before, folds), boxes(after)
    if max(map(len, drawn)) > MOST_NODES:
        return None
    there, taken = numbers(folds)
    kept = {fold.name: there[fold.name] for fold in folds if not fold.folded}
    return drawing(drawn[0], there), drawing(drawn[1], {**taken, **kept})


def drawing(found: Sequence[Box], marks: Mapping[str, str], at: tuple[int, int] | None = None) -> str:
    """Return the SVG of a graph; ``marks`` are the numbers beside nodes, by name.

    ``at``: where it lies inside another SVG, without STYLE; None: it is a picture of its own.
    """
    places = _places(found)
    lanes = 1 + max((lane for _, lane in places), default=0)
    ranks = 1 + max((rank for rank, _ in places), default=0)
    alone = [sum(rank == other for other, _ in places) == 1 for rank in range(ranks)]
    width = lanes * (_WIDTH + _GAP) - _GAP + 2 * _MARGIN + 24
    height = ranks * _STEP - (_STEP - _HEIGHT) + 2 * _MARGIN
    corners = [
        ((width - _WIDTH) / 2 if alone[rank] else _MARGIN + 12 + lane * (_WIDTH + _GAP), _MARGIN + rank * _STEP)
        for rank, lane in places
    ]
    parts = []
    for number, box in enumerate(found):
        rank = places[number][0]
        parts += [_edge(corners[read], corners[number], rank - places[read][0]) for read in box.reads]
    drawn = set()
    for box, (x, y) in zip(found, corners, strict=True):
        mark = marks.get(box.name, "") if box.kind in ("norm", "linear") and box.name not in drawn else ""
        drawn |= {box.name} if mark else set()
        parts.append(_box(x, y, box, mark))
    inside = "\n".join(parts)
    place = "" if at is None else f' x="{at[0]}" y="{at[1]}"'
    style = STYLE if at is None else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="net"{place} viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">{style}\n{inside}\n</svg>'
    )


def _places(found: Sequence[Box]) -> list[tuple[int, int]]:
    """The rank and the lane of each box: below everything that it reads, and below the first of it if that is free."""
    places: list[tuple[int, int]] = []
    taken: set[tuple[int, int]] = set()
    for box in found:
        rank = 1 + max((places[read][0] for read in box.reads), default=-1)
        lane = places[box.reads[0]][1] if box.reads else 0
        if len(box.reads) > 1:
            lane = min(places[read][1] for read in box.reads)
        if (rank, lane) in taken:
            lane = next(other for other in range(len(found)) if (rank, other) not in taken)
        taken.add((rank, lane))
        places.append((rank, lane))
    return places


def _edge(source: tuple[float, float], target: tuple[float, float], ranks: int) -> str:
    x1, y1, x2, y2 = source[0] + _WIDTH / 2, source[1] + _HEIGHT, target[0] + _WIDTH / 2, target[1]
    if ranks > 1 and abs(x1 - x2) < _WIDTH:  # around the boxes between them
        side = max(x1, x2) + _WIDTH / 2 + 9
        down = f"C{side:g} {y1 + 22:g} {side:g} {y1 + 8:g} {side:g} {y1 + 30:g}"
        back = f"C{side:g} {y2 - 8:g} {side:g} {y2 - 22:g} {x2:g} {y2:g}"
        return f'<path d="M{x1:g} {y1:g} {down} L{side:g} {y2 - 30:g} {back}"/>'
    middle = (y1 + y2) / 2 if ranks == 1 else y2 - 12
    straight = f"M{x1:g} {y1:g} L{x1:g} {y2 - (y2 - middle) * 2:g} " if ranks > 1 else f"M{x1:g} {y1:g} "
    return f'<path d="{straight}C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2:g}"/>'


def _box(x: float, y: float, box: Box, mark: str) -> str:
    name, text = (_short(line) for line in (box.name, box.text))
    lines = f'<text class="name" x="{x + 8:g}" y="{y + 15:g}">{escape(name)}</text>' if name else ""
    lines += f'<text x="{x + 8:g}" y="{y + (30 if name else 23):g}">{escape(text)}</text>'
    badge = ""
    if mark:
        wide = max(9.0, 4 + 3.4 * len(mark))
        at = x + _WIDTH - wide + 4
        badge = (
            f'<g><rect x="{at - wide:g}" y="{y - 8:g}" width="{2 * wide:g}" height="17" rx="8.5" '
            f'style="fill:#a3431a;stroke:none"/>'
            f'<text class="number" x="{at:g}" y="{y + 4.5:g}">{escape(mark)}</text></g>'
        )
    title = f"<title>{escape(f'{box.name}: {box.text}' if box.name else box.text)}</title>"
    return (
        f'<g class="{box.kind}">{title}<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="5"/>'
        f"{lines}</g>{badge}"
    )


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS // 2 - 1]}…{text[-_LETTERS // 2 :]}"


def _computes(node: ir.Node) -> str:
    weight = node.inputs[1].shape if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if node.op_type in ("Conv", "ConvTranspose") and weight is not None and len(weight) > 2:
        kernel = "×".join(str(size) for size in weight.dims[2:])
        grouped = node.attributes.get_int("group", 1)
        inputs, outputs = (weight[1], weight[0]) if node.op_type == "Conv" else (weight[0], weight[1])
        if grouped > 1:
            return f"{node.op_type} {outputs}, {grouped} groups, k {kernel}"
        return f"{node.op_type} {inputs}→{outputs}, kernel {kernel}"
    return {"BatchNormalization": "BatchNorm", "Gemm": "Linear", "ReduceMax": "maximum", "ReduceMean": "mean"}.get(
        node.op_type, node.op_type
    )
