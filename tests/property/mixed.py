"""Drawn networks of mixed operators through the whole export, and the judgement of what comes out.

A network is convolutions, BatchNorms with gamma of every sign, and readers along every axis, with operators of
:mod:`tests.property.operators` between them. It goes one of four ways: as a module, as an ONNX file of the TorchScript
exporter in any of its opsets, as a ``.pt2`` program, or through ``fold(module)``. It comes out well in two ways: as a
published file that onnxruntime loads and that answers as PyTorch in float64, or with a sentence of an ExportError.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from normfold.export.choices import VARIANTS
from normfold.export.errors import ExportError, VerificationError
from normfold.export.fold import fold
from normfold.export.forms import precision, variants
from normfold.export.pipeline import export_model
from normfold.export.request import ExportRequest

from .operators import JOINS, LINEAR, OTHERS, pick

__all__ = ["ROUTES", "Drawn", "Mixed", "Outcome", "draw", "judge", "tried"]

#: Every operator by name.
OTHERS_AND_LINEAR = {**LINEAR, **OTHERS}

ROUTES = ("file", "file", "file", "module", "fold", "program")
OPSETS = range(11, 20)
#: float32's distance from 1 to the next number.
ULP = float(np.finfo(np.float32).eps)
ANY = "any"
#: How far, as a share of the largest answer, a file in fewer bits may be off on inputs that the export did not see.
FEWER_BITS = {"fp16": 0.1, "bf16": 0.5, "int8": 1.0}
#: Answers a tensor with the arrays of all outputs.
Run = Callable[[Tensor], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Step:
    """One operator: its name, the seed of its numbers, and what it reads, counted back from the newest value."""

    name: str
    seed: int
    reads: int = 0
    also: int = 1


@dataclass(frozen=True)
class Drawn:
    """A drawn network, and how it is exported."""

    seed: int
    steps: tuple[Step, ...]
    channels: int
    length: int
    dynamic: bool
    tokens: bool
    more_outputs: bool
    route: str
    opset: int
    variant: str
    fold_all: bool
    precision: str | None
    #: Whether fewer bits are calibrated and measured on samples.
    samples: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a drawn network: "exported", "refused" with a sentence, or a fault."""

    kind: str
    text: str = ""
    notes: tuple[str, ...] = ()

    @property
    def fault(self) -> bool:
        """Whether this must not happen."""
        return self.kind not in ("exported", "refused")


class Mixed(nn.Module):
    """A network of steps; those that do not take what they are given at every size are left out."""

    def __init__(self, drawn: Drawn):
        super().__init__()
        self.more_outputs = drawn.more_outputs
        self.wiring: list[tuple[int, int, str]] = []
        self.layers = nn.ModuleList()
        self.embedding = nn.Embedding(7, drawn.channels) if drawn.tokens else None
        inputs = examples(drawn)
        values = [[x if self.embedding is None else self.embedding(x).transpose(1, 2)] for x in inputs]
        for step in drawn.steps:
            self._add(step, values)
        self.eval().requires_grad_(False)

    def _add(self, step: Step, values: list[list[Tensor]]) -> None:
        g = torch.Generator().manual_seed(step.seed)
        i = len(values[0]) - 1 - step.reads % len(values[0])
        j = len(values[0]) - 1 - step.also % len(values[0])
        try:
            with torch.no_grad():
                if step.name in JOINS:
                    made: nn.Module = nn.Identity()
                    got = [JOINS[step.name](v[i], v[j]) for v in values]
                else:
                    made = OTHERS_AND_LINEAR[step.name](g, values[0][i].shape).eval()
                    got = [made(v[i]) for v in values]
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, ZeroDivisionError):
            return
        for v, y in zip(values, got, strict=True):
            if y.ndim != 3 or y.shape[0] != v[0].shape[0] or y.numel() > 20_000 or not _tame(y):
                return
        if len({y.shape[1] for y in got}) > 1 or (y.shape[1] > 24):
            return
        self.layers.append(made)
        self.wiring.append((i, j, step.name))
        for v, y in zip(values, got, strict=True):
            v.append(y)

    def forward(self, x: Tensor) -> Any:
        values = [x if self.embedding is None else self.embedding(x).transpose(1, 2)]
        for layer, (i, j, name) in zip(self.layers, self.wiring, strict=True):
            values.append(JOINS[name](values[i], values[j]) if name in JOINS else layer(values[i]))
        return (values[-1], values[len(values) // 2]) if self.more_outputs else values[-1]


def _tame(y: Tensor) -> bool:
    """Whether a float32 network of such values has digits to compare."""
    return y.numel() > 0 and y.is_floating_point() and bool(y.isfinite().all()) and 1e-3 < float(y.abs().max()) < 1e3


def draw(seed: int, route: str = "", bits: str = "") -> Drawn:
    """Return the network of a seed: two or three readers, before each a BatchNorm and up to four other operators.

    bits: publish it in this precision, or in any (ANY); the way through ``fold(module)`` publishes nothing.
    """
    g = torch.Generator().manual_seed(seed)

    def step(name: str) -> Step:
        return Step(name, int(torch.randint(2**20, (), generator=g)), pick(g, 0, 0, 0, 0, 0, 1, 2), pick(g, 1, 1, 2, 3))

    steps = [step(pick(g, "conv", "conv", *LINEAR))]
    for _ in range(pick(g, 1, 2, 2, 3)):
        names = [pick(g, *OTHERS, *OTHERS, *JOINS) for _ in range(pick(g, 0, 1, 2, 3, 4))]
        names.insert(int(torch.randint(len(names) + 1, (), generator=g)), pick(g, "batch norm", "batch norm", "relu"))
        names.insert(int(torch.randint(len(names) + 1, (), generator=g)), "batch norm")
        steps += [step(name) for name in (*names, pick(g, "conv", *LINEAR))]
    return Drawn(
        seed,
        tuple(steps),
        channels=pick(g, 2, 3, 4, 6),
        length=pick(g, 9, 12, 16),
        dynamic=pick(g, True, False),
        tokens=pick(g, False, False, False, True),
        more_outputs=pick(g, False, False, True),
        route=route or pick(g, *(r for r in ROUTES if not bits or r != "fold")),
        opset=pick(g, *OPSETS),
        variant=pick(g, "auto", *VARIANTS),
        fold_all=pick(g, False, False, True),
        precision=pick(g, *FEWER_BITS) if bits == ANY else bits or None,
        samples=pick(g, True, True, False),
    )


def examples(drawn: Drawn, seed: int = 0) -> list[Tensor]:
    """Return an input at the traced sizes and one at others."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(2, drawn.length), (3, drawn.length + (4 if drawn.dynamic else 0))]
    if drawn.tokens:
        return [torch.randint(0, 7, shape, generator=g) for shape in shapes]
    return [torch.randn((n, drawn.channels, length), generator=g) for n, length in shapes]


def tried(drawn: Drawn, folder: Path) -> Outcome:
    """Export the network into ``folder`` and judge what became of it."""
    torch.manual_seed(drawn.seed)
    network = Mixed(drawn)
    return judge(network, drawn, folder)


def judge(network: Mixed, drawn: Drawn, folder: Path) -> Outcome:
    """Export ``network``; the outcome is a fault where it ends in no sentence, or where the answers are wrong."""
    source: Any = network
    try:
        if drawn.route == "fold":
            folded, _ = fold(network, (examples(drawn)[0],), fold_all=drawn.fold_all)
            return _answers(network, drawn, lambda x: _arrays(folded(x)))
        if drawn.route in ("file", "program"):
            source = str(_written(network, drawn, folder))
    except ExportError as error:
        return _sentence(str(error))
    except _NotWrittenError as error:
        return Outcome("refused", f"torch does not write this file: {str(error.__cause__).strip().splitlines()[0]}")
    except Exception as error:
        return _crash(error)
    try:
        report = export_model(_request(source, drawn, folder))
    except VerificationError as error:  # weights that were never trained may lose much in fewer bits
        costs = drawn.precision is not None and str(error).startswith(drawn.precision)
        return _sentence(str(error)) if costs else Outcome("not proved", str(error))
    except ExportError as error:
        return _sentence(str(error))
    except Exception as error:
        return _crash(error)
    try:
        run = _session(Path(report.path) / "model.onnx")
        onnx.checker.check_model(Path(report.path) / "model.onnx")
    except Exception as error:
        return Outcome("does not load", str(error))
    outcome = _answers(network, drawn, run, _session(Path(source)) if drawn.route == "file" else None)
    return replace(outcome, notes=report.notes)


def _session(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda x: session.run(None, {given.name: x.numpy()})


def _request(source: Any, drawn: Drawn, folder: Path) -> ExportRequest:
    dims = f"N,{'L' if drawn.dynamic else drawn.length}" if drawn.tokens else ""
    dims = dims or f"N,{drawn.channels},{'L' if drawn.dynamic else drawn.length}"
    inputs = () if drawn.route == "program" else (f"x=INT64[{dims}]:0..6" if drawn.tokens else f"x=FP32[{dims}]",)
    samples = []
    if drawn.precision and drawn.samples:
        samples = [folder / f"sample{i}.npz" for i in range(3)]
        for seed, path in enumerate(samples, 1):
            np.savez(path, x=examples(drawn, seed)[0].numpy())
    return ExportRequest(
        source=source,
        repository=folder / "repository",
        name="net",
        inputs=inputs,
        samples=samples,
        variant=drawn.variant if drawn.variant in ("auto", "unfolded", "folded") else "auto",
        fold_all=drawn.fold_all,
        precision=drawn.precision,
        even_if_slower=True,
    )


class _NotWrittenError(Exception):
    """torch cannot write the file, which is no concern of this project."""


def _written(network: Mixed, drawn: Drawn, folder: Path) -> Path:
    """Write the network as the file that its route names."""
    x = examples(drawn)[0]
    axes = {0: "N", x.ndim - 1: "L"} if drawn.dynamic else {0: "N"}
    path = folder / ("net.onnx" if drawn.route == "file" else "net.pt2")
    try:
        with warnings.catch_warnings(), torch.no_grad(), mock.patch("torch._C._jit_onnx_log"):
            warnings.simplefilter("ignore")
            if drawn.route == "file":
                torch.onnx.export(
                    network,
                    (x,),
                    str(path),
                    dynamo=False,
                    training=torch.onnx.TrainingMode.PRESERVE,
                    opset_version=drawn.opset,
                    input_names=["x"],
                    dynamic_axes={"x": axes},
                )
            else:
                dim = torch.export.Dim
                dynamic = tuple(dim.DYNAMIC if axis in axes else dim.STATIC for axis in range(x.ndim))
                torch.export.save(torch.export.export(network, (x,), dynamic_shapes=(dynamic,)), path)
    except Exception as error:
        raise _NotWrittenError from error
    return path


def _answers(network: Mixed, drawn: Drawn, run: Run, source: Run | None = None) -> Outcome:
    """Compare answers with the network in float64, at several sizes and on inputs that the export did not see.

    ``source`` runs the file that was exported: where it is another function than the network, its exporter is wrong.
    """
    double = copy.deepcopy(network).double()
    for seed in (5, 6):
        for x in examples(drawn, seed):
            wide = x.double() if x.is_floating_point() else x
            exact, plain = _arrays(double(wide)), _arrays(network(x))
            near = _arrays(double(wide * (1 + ULP) if x.is_floating_point() else wide))
            granted = [
                1e-3 * np.abs(want).max() + 64 * np.abs(own - want).max() + 16 * np.abs(moved - want).max() + 1e-9
                for want, own, moved in zip(exact, plain, near, strict=True)
            ]
            if source is not None and _differs(source, x, exact, granted):
                continue
            share = FEWER_BITS.get(drawn.precision or "", 0.0)
            granted = [g + share * np.abs(want).max() for g, want in zip(granted, exact, strict=True)]
            if difference := _differs(run, x, exact, granted):
                return Outcome("wrong answer", difference)
    return Outcome("exported")


def _differs(run: Run, x: Tensor, exact: Sequence[np.ndarray], granted: Sequence[float]) -> str:
    """Return how the answers of ``run`` differ, or ""."""
    try:
        answers = run(x)
    except Exception as error:
        return f"does not run on {tuple(x.shape)}: {error}"
    for want, got, allowed in zip(exact, answers, granted, strict=True):
        if got.shape != want.shape:
            return f"shape {got.shape} on {tuple(x.shape)}, expected {want.shape}"
        if not np.abs(got - want).max() <= allowed:
            return f"off by {np.abs(got - want).max():.1e} of {np.abs(want).max():.1e} on {tuple(x.shape)}"
    return ""


def _arrays(returned: Any) -> list[np.ndarray]:
    return [t.detach().numpy() for t in (returned if isinstance(returned, tuple) else (returned,))]


def _sentence(text: str) -> Outcome:
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) != 1 or "Traceback" in text:
        return Outcome("no sentence", text)
    if "cannot load the graph" in text:
        return Outcome("does not load", text)
    return Outcome("refused", text)


def _crash(error: Exception) -> Outcome:
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(last))
    return Outcome("crash", f"{type(error).__name__}: {str(error)[:300]} at {where}")


@contextmanager
def untimed() -> Iterator[None]:
    """Leave out the measurement of run times, which takes longer than all else."""

    def medians(runtimes: Mapping[str, Any], *_: Any, **__: Any) -> tuple[dict[str, float], int]:
        return dict.fromkeys(runtimes, 1.0), 1

    with mock.patch.object(variants, "medians", medians), mock.patch.object(precision, "medians", medians):
        yield


def smaller(drawn: Drawn) -> Iterator[Drawn]:
    """Yield the same network without one of its steps, or with less to export, for a fault to be seen in."""
    for k in range(len(drawn.steps)):
        yield replace(drawn, steps=drawn.steps[:k] + drawn.steps[k + 1 :])
    if drawn.more_outputs:
        yield replace(drawn, more_outputs=False)
    if drawn.dynamic:
        yield replace(drawn, dynamic=False)


def names(steps: Sequence[Step]) -> str:
    """Return the steps as text, with what they read where that is not the newest value."""
    return ", ".join(step.name + (f" (reads {step.reads} back)" if step.reads else "") for step in steps)
