"""Our int8 beside onnxruntime's and OpenVINO's quantizers on the file of torch's exporter: error, and time.

    python -m benches.quantized DATA [NAME ...] [--write]

DATA is the folder with surnames.csv and gunpoint/, as for benches.bits. Each network is written in int8 four times:

    quantize_static   onnxruntime's quantizer with its defaults, on the file that torch.onnx.export writes by default
    nncf              nncf.quantize, the quantizer of OpenVINO, with its defaults, on the same file
    minimum, maximum  the folded graph with one scale for each row of the weights, and the ranges that were seen
    normfold          what ``--quantize int8`` publishes: see docs/export.md

all with the same rows. The two reference networks calibrate on rows of their training data and are measured on their
test data. Of the others no data are there: they calibrate on rows made from the statistics of their BatchNorms, and
are measured on the data that these statistics come from (benches.bits says how they are made).

Errors are those of the arithmetic, on any processor: the QDQ graph is run as it is written, so that no sum saturates.
What the optimised graph gives on this one is a column of its own. Times are CPU times of one row on one thread: of our
float32 and int8 graphs in onnxruntime, and of NNCF's graph in OpenVINO. Each network's figures are kept in
results.json, so that a run can be done in parts; --write writes RESULTS.md from all of them. The packages are those of
benches/zoo/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from benches.bits.__main__ import REFERENCE, Subject, of_zoo, reference
from benches.machine import machine
from benches.processors import on_others, processor, results_file
from benches.quantized.measure import ROUND_SECONDS, ROUNDS, Figures, measured
from benches.ratios import geometric_mean

#: Networks of the zoo: TCN, inception, residual with and without squeeze-excitation, depthwise, plain.
ZOO = (
    "example_4_22",
    "pytorch_tcn",
    "deepecgkit_simple_cnn",
    "deepecgkit_fcn_wang",
    "tsai_resnet",
    "nemo_matchbox",
    "deepecgkit_se_resnet1d",
    "tsai_inception_time",
    "monai_resnet",
    "deepecgkit_xresnet1d",
    "resnet1d",
    "quartz_net",
    "torch_ecg_mobilenet_v1",
)
FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"
#: The aims: our error beside quantize_static's, labels that change on trained networks, and the time of float32 over
#: that of int8 on a processor with VNNI.
ERROR_AIM, LABEL_AIM, SPEED_AIM = 1 / 3, 0.002, 2.0


def subject_of(name: str, data: Path) -> Subject:
    return reference(name, data) if name in REFERENCE else of_zoo(name)


def lines(figures: dict[str, Figures], others: dict[str, dict[str, Figures]]) -> Iterator[str]:
    """Yield RESULTS.md; ``others`` are the figures of other processors by their names."""
    yield "# int8\n"
    yield "Written by `python -m benches.quantized DATA --write`. What is measured, on which data: see the program.\n"
    yield f"{machine()} torch {torch.__version__}, onnxruntime {onnxruntime.__version__}.\n"
    yield "Each cell: largest error over the largest output; root mean square error over the outputs' deviation; rows"
    yield "whose label changes in %, where the output is a row of scores. *here*: largest error of the optimised graph"
    yield "on this processor. Ratio: of our largest error over quantize_static's, and over NNCF's. Time over int8: of"
    yield "our float32 graph, and of NNCF's file in OpenVINO, over that of our int8 file, one row, one thread: the"
    yield f"median of {ROUNDS} rounds of {ROUND_SECONDS:g} s, ± half the distance between their quartiles; where"
    yield "the first is below 1, `--quantize int8` refuses. Kept: linear operators in float32. Equalised: layers whose"
    yield "channels were scaled."
    yield (
        "\n| network | quantize_static | here | NNCF | minimum, maximum | normfold | here | ratio | kept | "
        "equalised | biases | time over int8 |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for name, f in figures.items():
        ratio = f"{f.ours.largest / f.static.largest:.2f}, {f.ours.largest / f.nncf.largest:.2f}"
        yield (
            f"| {name} | {f.static} | {f.static_here:.3f} | {f.nncf} | {f.plain} | {f.ours} | {f.ours_here:.3f} | "
            f"{ratio} | {f.kept} of {f.linear} | {f.equalised} | {'corrected' if f.corrected else ''} | "
            f"{_time(f.speed, f.spread)}, {_time(f.speed_over_nncf, f.spread_over_nncf)} |"
        )
    yield ""
    yield from summary(figures)
    if others:
        yield from times({processor(): figures, **others})


def summary(figures: dict[str, Figures]) -> Iterator[str]:
    """Yield the table of the aims."""
    static, nncf, plain, ours = (
        [getattr(f, which).largest for f in figures.values()] for which in ("static", "nncf", "plain", "ours")
    )
    yield "| | quantize_static | NNCF | minimum, maximum | normfold | aim | over quantize_static | over NNCF |"
    yield "|---|---|---|---|---|---|---|---|"
    for title, of in (("median", np.median), ("worst", np.max)):
        a, n, b, c = (float(of(values)) for values in (static, nncf, plain, ours))
        errors = " | ".join(f"{each:.3f}" for each in (a, n, b, c))
        yield f"| {title} of the largest error | {errors} | ≤ ⅓ | {c / a:.2f} | {c / n:.2f} |"
    spreads = " | ".join(_spread(ours, others) for others in (static, nncf))
    yield f"| median of the ratios | | | | | ≤ ⅓ | {spreads} |"
    for name in REFERENCE:
        if name in figures:
            a, n, b, c = (getattr(figures[name], which).changed for which in ("static", "nncf", "plain", "ours"))
            yield f"| labels that change, {name} | {a:.2%} | {n:.2%} | {b:.2%} | {c:.2%} | ≤ {LABEL_AIM:.1%} | | |"
    speeds = [f.speed for f in figures.values()]
    yield (
        f"\nTime of float32 over int8, geometric mean: {geometric_mean(speeds):.2f}; slower in int8, so refused: "
        f"{sum(speed < 1 for speed in speeds)} of {len(speeds)}. The aim, ≥ {SPEED_AIM:g}, is for processors with VNNI."
    )
    over = [f.speed_over_nncf for f in figures.values()]
    nearer = sum(c < n for c, n in zip(ours, nncf, strict=True))
    yield (
        f"\nBeside NNCF in OpenVINO our int8 has the smaller error on {nearer} of {len(ours)}, and takes less time on "
        f"{sum(each > 1 for each in over)} (geometric mean {geometric_mean(over):.2f} × faster)."
    )
    yield from reasons(figures)


def times(processors: dict[str, dict[str, Figures]]) -> Iterator[str]:
    """Yield a table of the times on each kind of processor."""
    yield "\nOn each kind of processor, by its newest vector instructions: the time of float32 over that of int8, and"
    yield "of NNCF's file in OpenVINO over that of our int8.\n"
    yield f"| network | {' | '.join(processors)} |"
    yield "|---" * (1 + len(processors)) + "|"
    for name in next(iter(processors.values())):
        found = [figures.get(name) for figures in processors.values()]
        cells = ["" if f is None else f"{f.speed:.2f}, {f.speed_over_nncf:.2f}" for f in found]
        yield f"| {name} | {' | '.join(cells)} |"
    means = [
        f"{geometric_mean(f.speed for f in figures.values()):.2f}, "
        f"{geometric_mean(f.speed_over_nncf for f in figures.values()):.2f}"
        for figures in processors.values()
    ]
    yield f"| geometric mean | {' | '.join(means)} |"


def reasons(figures: dict[str, Figures]) -> Iterator[str]:
    """Yield what bounds the aims that are not reached, and what was tried."""
    ratios = {name: f.ours.largest / f.static.largest for name, f in figures.items()}
    above = [f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio > ERROR_AIM]
    if above:
        yield (
            f"\nAbove ⅓ of quantize_static's error: {', '.join(above)}. Eight bits for each activation are the bound: "
            "where one value has a long tail, either its ends or its digits are lost, and to keep more operators in "
            "float32 costs the speed. Operators are kept as long as they have at most a tenth of the multiply-adds; "
            "equal ranges, wider ranges and corrected biases are tried for each network, and taken where they help."
        )
    changed = {name: figures[name].ours.changed or 0.0 for name in REFERENCE if name in figures}
    if any(part > LABEL_AIM for part in changed.values()):
        yield (
            "\nLabels of surnames: 1 % of its rows have two scores that are nearer to each other than 0.7 % of the "
            "scores' deviation, 0.2 % nearer than 0.2 %, and the error of eight bits is 1.5 % (root mean square). "
            "With a third operator in float32 0.19 % of the labels change; the time of float32 over int8 falls to 1.1."
        )


def _time(ratio: float, spread: float | None) -> str:
    """Return a ratio of times with its spread, as far as that was kept."""
    return f"{ratio:.2f}" if spread is None else f"{ratio:.2f} ± {spread:.2f}"


def _spread(ours: list[float], others: list[float]) -> str:
    """Return the median of the ratios with the least and the largest."""
    ratios = [c / a for a, c in zip(others, ours, strict=True)]
    return f"{np.median(ratios):.2f} (least {min(ratios):.2f}, worst {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the reference networks' data")
    parser.add_argument("names", nargs="*", help="networks; default: all")
    parser.add_argument("--write", action="store_true", help="keep the figures, and write RESULTS.md from all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = results_file(FOLDER)
    kept = json.loads(file.read_text("utf-8")) if file.exists() else {}
    for name in options.names or (*REFERENCE, *ZOO):
        print(f"{name} …", file=sys.stderr, flush=True)
        figures = measured(subject_of(name, options.data), name in REFERENCE)
        print(name, asdict(figures), flush=True)
        kept[name] = asdict(figures)
        if options.write:
            file.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    if options.write:
        others = {name: ordered(figures) for name, figures in on_others(FOLDER).items()}
        RESULTS.write_text("\n".join(lines(ordered(kept), others)) + "\n", "utf-8")


def ordered(kept: dict[str, Any]) -> dict[str, Figures]:
    """Return the figures that were kept, in the order of the table."""
    return {name: Figures.of(kept[name]) for name in (*REFERENCE, *ZOO) if name in kept}


if __name__ == "__main__":
    main()
