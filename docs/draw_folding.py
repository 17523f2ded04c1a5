"""Draw the surname network before and after folding, from the two ONNX graphs: ``python docs/draw_folding.py``.

The script writes ``docs/folding.svg``. Boxes, branches and weight shapes come from the graphs, the numbers of the
BatchNorms from the report of the fold.
"""

from __future__ import annotations

import argparse
import logging
import re
import warnings
from pathlib import Path

import onnx_ir as ir
import torch

from normfold.export.fold import FoldReport, fold
from normfold.export.publishing.graph_picture import STYLE, Box, boxes, drawing, numbers
from normfold.export.sources.source import load_source
from normfold.export.sources.weights import load_into, read_checkpoint
from normfold.models import surnames
from normfold.models.surnames.vectorizer import Vectorizer

HERE = Path(__file__).resolve().parent
TOP, LEFT, GAP = 66, 16, 34


def main() -> None:
    """Fold the trained network and write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "folding.svg")
    out = parser.parse_args().out
    model = captured()
    before = boxes(model.graph)
    report = fold(model)
    out.write_text(picture(before, boxes(model.graph), report), encoding="utf-8")
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


def picture(before: list[Box], after: list[Box], report: FoldReport) -> str:
    """Return the SVG: both graphs side by side; a BatchNorm and the weights that took it have the same number."""
    there, taken = numbers(report.folds)
    left = drawing(before, there, (LEFT, TOP))
    wide, tall = _size(left)
    right = drawing(after, taken, (LEFT + wide + GAP, TOP))
    width, height = 2 * LEFT + GAP + wide + _size(right)[0], TOP + max(tall, _size(right)[1]) + 12
    at = LEFT + wide + GAP + 14
    trained = f"as trained: {len(before)} nodes, {report.batchnorms_before} BatchNorms"
    served = f"as served: {len(after)} nodes, {report.batchnorms_after} BatchNorms"
    return (
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
                f'width="{width}" height="{height}" '
                'class="net" role="img">',
                "<title>The surname network before and after folding</title>",
                STYLE.replace("</style>", PAPER),
                f'<rect class="paper" width="{width}" height="{height}" rx="8"/>',
                f'<text class="head" x="{LEFT + 14}" y="30">{trained}</text>',
                f'<text x="{LEFT + 14}" y="52">BatchNorm(x) = s x + t,   s = γ/√(σ²+ε),   t = β − s μ</text>',
                f'<text class="head" x="{at}" y="30">{served}</text>',
                f'<text x="{at}" y="52">weights with a number took that BatchNorm:   W′ = W s,   b′ = b + W t</text>',
                left,
                right,
                "</svg>",
            ]
        )
        + "\n"
    )


PAPER = """.net .head { font-size: 15px; font-weight: 700; } .net .paper { fill: #ffffff; stroke: none; }
@media (prefers-color-scheme: dark) { .net .paper { fill: #0d1117; } }
</style>"""


def _size(svg: str) -> tuple[int, int]:
    found = re.search(r'width="(\d+)" height="(\d+)"', svg)
    assert found is not None
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    main()
