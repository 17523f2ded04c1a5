"""Draw the surname network before and after folding, from the two ONNX graphs: ``python docs/draw_folding.py``.

The script writes ``docs/folding.svg``. The boxes and weight shapes come from the graphs, the arrows from the report of
the fold.
"""

from __future__ import annotations

import argparse
import logging
import re
import warnings
from dataclasses import dataclass
from html import escape
from pathlib import Path

import onnx_ir as ir
import torch

from normfold.export.fold import FoldReport, fold
from normfold.export.fold.reading import module_of
from normfold.export.sources.source import load_source
from normfold.export.sources.weights import load_into, read_checkpoint
from normfold.models import surnames
from normfold.models.surnames.vectorizer import Vectorizer

HERE = Path(__file__).resolve().parent
BOX_WIDTH, BOX_HEIGHT, STEP, TOP, LEFT, GAP = 250, 22, 29, 62, 20, 230
COLOURS = {"Conv": "#d6e6f5", "Gemm": "#d6e6f5", "BatchNormalization": "#f7d9c4", "Relu": "#e4efd9"}


@dataclass(frozen=True)
class Box:
    """One node of a graph."""

    op_type: str
    module: str
    text: str


def main() -> None:
    """Fold the trained network and write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "folding.svg")
    out = parser.parse_args().out
    model = captured()
    before = boxes(model)
    report = fold(model)
    out.write_text(drawing(before, boxes(model), report), encoding="utf-8")
    print(f"wrote {out}")


def captured() -> ir.Model:
    """Return the ONNX graph that torch exports from the trained network, before folding."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    network = load_source(surnames.FACTORY, {}).network
    load_into(network, read_checkpoint(surnames.CHECKPOINT, network.state_dict()), surnames.CHECKPOINT)
    x = torch.from_numpy(Vectorizer.load()(["Garcia"]))
    program = torch.onnx.export(network.eval(), (x,), dynamo=True, verbose=False)
    assert program is not None
    model = program.model
    assert isinstance(model, ir.Model)
    return model


def boxes(model: ir.Model) -> list[Box]:
    """Return a box for each node in order; each box names the PyTorch module of its node."""
    return [Box(node.op_type, module_of(node), _text(node)) for node in model.graph]


def _text(node: ir.Node) -> str:
    weight = node.inputs[1].shape if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if node.op_type == "Conv" and weight is not None:
        return f"{module_of(node)}   Conv {weight[1]} → {weight[0]}, kernel {weight[2]}"
    if node.op_type == "BatchNormalization":
        return f"{module_of(node)}   BatchNorm"
    if node.op_type == "Gemm":
        return f"{module_of(node)}   Linear"
    return {"ReduceMax": "maximum over the length"}.get(node.op_type, node.op_type)


def drawing(before: list[Box], after: list[Box], report: FoldReport) -> str:
    """Return the SVG: two columns of boxes, and an arrow from each BatchNorm to the weights that took it."""
    right = LEFT + BOX_WIDTH + GAP
    width, height = right + BOX_WIDTH + LEFT, TOP + STEP * len(before) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13" role="img">',
        "<title>The surname network before and after folding</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#b5541c"/></marker></defs>',
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        _label(LEFT, 28, f"as trained: {len(before)} nodes, {report.batchnorms_before} BatchNorms", bold=True),
        _label(right, 28, f"as served: {len(after)} nodes, {report.batchnorms_after} BatchNorms", bold=True),
        _label(LEFT, 48, "BatchNorm(x) = s x + t,   s = γ/√(σ²+ε),   t = β − s μ"),
        _label(right, 48, "W′ = W s,   b′ = b + W t"),
    ]
    places = {box.module: TOP + STEP * i for i, box in enumerate(after) if box.op_type in ("Conv", "Gemm")}
    for i, box in enumerate(after):
        parts.append(_box(right, TOP + STEP * i, box))
    for i, box in enumerate(before):
        parts.append(_box(LEFT, TOP + STEP * i, box))
    rows = {box.module: TOP + STEP * i for i, box in enumerate(before) if box.op_type == "BatchNormalization"}
    for one in report.folds:
        for reader in re.findall(r"'([^']+)'", one.how):
            if one.name in rows and reader in places:
                y1, y2 = rows[one.name] + BOX_HEIGHT / 2, places[reader] + BOX_HEIGHT / 2
                x1, x2 = LEFT + BOX_WIDTH + 2, right - 2
                bend = f"{x1 + GAP / 2:.0f} {y1:.0f} {x2 - GAP / 2:.0f} {y2:.0f}"
                path = f"M{x1} {y1:.0f} C{bend} {x2} {y2:.0f}"
                parts.append(
                    f'<path d="{path}" fill="none" stroke="#b5541c" stroke-width="1.5" marker-end="url(#tip)"/>'
                )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _box(x: float, y: float, box: Box) -> str:
    colour = COLOURS.get(box.op_type, "#eeeeee")
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4" fill="{colour}" stroke="#777777"/>'
        f"{_label(x + 10, y + 16, box.text)}"
    )


def _label(x: float, y: float, text: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" fill="#222222"{weight}>{escape(text)}</text>'


if __name__ == "__main__":
    main()
