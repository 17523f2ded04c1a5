"""One network in int8, four ways, and how far each is from float32 on rows that it was not calibrated on."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from benches.bits.__main__ import Subject
from numpy.typing import NDArray

from normfold.export.calibration.rows import Division, Rows
from normfold.export.calibration.synthetic import synthetic
from normfold.export.capture.capture import DEFAULT_OPSET
from normfold.export.fold import fold
from normfold.export.forms.calibrated import Calibrated, better
from normfold.export.forms.equalised import equalised
from normfold.export.forms.fewer_bits import in_pieces
from normfold.export.forms.int8 import quantized
from normfold.export.forms.measure import medians
from normfold.export.graphs.exact import Graph, unrounded
from normfold.export.graphs.float64 import Float64Graph
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.specs import parse_inputs
from normfold.export.proof.verify import Case
from normfold.export.sources.opening import open_origin
from normfold.export.sources.origin import Request
from normfold.serving.load.rounds import Ratio

Array = NDArray[Any]
#: Rows that are run at once.
AT_ONCE = 32
#: Rounds in which all files are timed in turns, and the length of each in seconds.
ROUNDS, ROUND_SECONDS = 7, 0.3
#: How far the equalised graph may be from the folded one in float64, over the output's scale.
SAME = 1e-9


@dataclass(frozen=True)
class Loss:
    """What int8 costs: the largest error over the largest output, root mean square, labels that change."""

    largest: float
    mean_square: float
    #: None where the output is not one row of scores for each input.
    changed: float | None

    def __str__(self) -> str:
        """Return "0.021; 0.009; 0.00"."""
        changed = "" if self.changed is None else f"; {100 * self.changed:.2f}"
        return f"{self.largest:.3f}; {self.mean_square:.3f}{changed}"


@dataclass(frozen=True)
class Figures:
    """What was measured of one network."""

    static: Loss
    static_here: float
    nncf: Loss
    plain: Loss
    ours: Loss
    ours_here: float
    #: Linear operators, those in float32, and layers that were equalised.
    linear: int
    kept: int
    equalised: int
    corrected: bool
    #: Our float32 graph's time over that of our int8 file.
    speed: float
    #: The time of NNCF's file in OpenVINO over that of our int8 file.
    speed_over_nncf: float
    #: Half the distance between the quartiles of both ratios; None: it was not kept.
    spread: float | None = None
    spread_over_nncf: float | None = None

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Figures:
        """Return what ``dataclasses.asdict`` made of figures."""
        losses = {name: Loss(**kept[name]) for name in ("static", "nncf", "plain", "ours")}
        return cls(**{**kept, **losses})


def measured(subject: Subject, real: bool) -> Figures:
    """Return the figures of one network; ``real``: its calibrating rows are data, not made from statistics."""
    specs = parse_inputs([subject.declared])
    origin = open_origin(Request(source=subject.network, inputs=[subject.declared]), [])
    model = unrounded(origin.graph(origin.specs, subject.sizes, DEFAULT_OPSET))
    assert model is not None, f"{subject.name} cannot be computed in float64"
    unfolded = Graph.of(model).content
    fold(model)
    folded = Graph.of(model)
    if real:
        rows = Rows.of([Case("sample", "rows", {"x": subject.calibration})], "sample", "rows", specs)
        division = in_pieces(Division(rows, rows), specs)
    else:
        drawn = synthetic(unfolded, specs, subject.sizes)
        assert drawn is not None, f"{subject.name} has no statistics"
        division = in_pieces(drawn, specs)
    assert division.calibration is not None
    pieces = [case.inputs for case in division.calibration.cases]
    exact = answers(folded.content, subject.test)
    file, calibration = torch_default(subject), [piece["x"] for piece in pieces]
    static, theirs = of_quantize_static(file, calibration), of_nncf(file, calibration)
    plain = quantized(folded.content, pieces)
    equal = equalised(folded, pieces, lambda made: _same(folded, made, subject.test[:2]))
    unequal = Calibrated(folded.content, pieces)
    calibrated = better(unequal, None if equal is None else Calibrated(equal.graph.content, pieces))
    equal = None if calibrated is unequal else equal
    ours = calibrated.written()
    runs: dict[str, Any] = {
        "float32": Runtime(folded.content, optimised=True),
        "int8": Runtime(ours.content, optimised=True),
        "nncf": OpenVino(theirs),
    }
    rounds = [medians(runs, {"x": subject.test[:1]}, ROUND_SECONDS)[0] for _ in range(ROUNDS)]
    speed, over_nncf = (
        Ratio.of((times[other] for times in rounds), (times["int8"] for times in rounds))
        for other in ("float32", "nncf")
    )
    return Figures(
        static=loss(exact, answers(static, subject.test, optimised=False)),
        static_here=loss(exact, answers(static, subject.test)).largest,
        nncf=loss(exact, answers(theirs, subject.test, optimised=False)),
        plain=loss(exact, answers(plain, subject.test, optimised=False)),
        ours=loss(exact, answers(ours.content, subject.test, optimised=False)),
        ours_here=loss(exact, answers(ours.content, subject.test)).largest,
        linear=sum(len(group.names) for group in calibrated.groups),
        kept=len(ours.kept),
        equalised=0 if equal is None else len(equal.layers),
        corrected=ours.corrected,
        speed=speed.median,
        speed_over_nncf=over_nncf.median,
        spread=speed.spread,
        spread_over_nncf=over_nncf.spread,
    )


def of_quantize_static(content: bytes, calibration: Sequence[Array]) -> bytes:
    """Return what onnxruntime's quantizer makes, with its defaults, of a file."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.rest = iter([{name: x} for x in calibration])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.rest, None)

    with tempfile.TemporaryDirectory() as folder:
        file, target = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        file.write_bytes(content)
        quantize_static(file, target, Reader("x"))
        return bytes(onnx.load(target).SerializeToString())


def of_nncf(content: bytes, calibration: Sequence[Array]) -> bytes:
    """Return what OpenVINO's NNCF makes, with its defaults, of a file: a QDQ graph like the others."""
    import nncf

    model = onnx.load_from_string(content)
    made = nncf.quantize(model, nncf.Dataset([{"x": x} for x in calibration]), subset_size=len(calibration))
    return bytes(made.SerializeToString())


def torch_default(subject: Subject) -> bytes:
    """Return the file that torch writes by default."""
    axes = [axis for axis, dim in enumerate(_dims(subject.declared)) if not dim.isdigit()]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            subject.network,
            (torch.from_numpy(subject.calibration[:2]),),
            str(file),
            dynamo=True,
            input_names=["x"],
            # Not by name: some operators bound or fix a dimension.
            dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.AUTO),),
            verbose=False,
        )
        return bytes(onnx.load(file).SerializeToString())


class OpenVino:
    """A file in OpenVINO: one thread, float32 where it is not int8, compiled for any shape."""

    def __init__(self, content: bytes) -> None:
        import openvino as ov

        core = ov.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        #: The CPU time of the process: OpenVINO works on a thread of its own.
        self.clock = time.process_time
        self._request = core.compile_model(core.read_model(content), "CPU", settings).create_infer_request()

    def run(self, inputs: dict[str, Array]) -> None:
        """Run once."""
        self._request.infer(inputs, share_inputs=True)


def _dims(declared: str) -> list[str]:
    """Return the dimensions of "x=FP32[N,1,L]"."""
    return declared.partition("[")[2].rstrip("]").split(",")


def _same(one: Graph, other: Graph, rows: Array) -> bool:
    assert one.exact is not None
    assert other.exact is not None
    a, b = (next(iter(Float64Graph(exact).run({"x": rows}).values())) for exact in (one.exact, other.exact))
    return bool(np.abs(a - b).max() <= SAME * np.abs(a).max())


def answers(content: bytes, rows: Array, *, optimised: bool = True) -> Array:
    """Return the first output for all rows."""
    graph = Runtime(content, optimised=optimised)
    return np.concatenate(
        [graph.run({"x": rows[i : i + AT_ONCE]})[graph.outputs[0]] for i in range(0, len(rows), AT_ONCE)]
    )


def loss(exact: Array, got: Array) -> Loss:
    """Return what ``got`` loses beside ``exact``, of one shape."""
    error = np.abs(got.astype(np.float64) - exact)
    changed = float((exact.argmax(1) != got.argmax(1)).mean()) if exact.ndim == 2 and exact.shape[1] > 1 else None
    return Loss(float(error.max() / np.abs(exact).max()), float(np.sqrt((error**2).mean()) / exact.std()), changed)
