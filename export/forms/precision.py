"""Fewer bits than float32, on request: each precision has its own proof and is refused where it would be slower.

    fp16    weights and arithmetic in float16; inputs and outputs stay float32
    bf16    the same in bfloat16, where onnxruntime has kernels for it (its CPU provider can only move bfloat16 values)
    int8    static quantization (:mod:`normfold.export.forms.int8`), value ranges from inputs; everything that lowers
            its error is chosen on these (:mod:`normfold.export.forms.calibrated`). More operators stay in float32
            where else too much is lost

Error and labels are measured on inputs that the calibration did not see (:mod:`normfold.export.calibration.rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from normfold.counting import counted
from normfold.export.calibration.rows import DataSet, Division
from normfold.export.errors import ExportError, VerificationError
from normfold.export.fold import counts
from normfold.export.fold.reading.names import module_of
from normfold.export.forms.bfloat16 import missing_kernels, to_bfloat16
from normfold.export.forms.calibrated import Calibrated, Int8File, better
from normfold.export.forms.equalised import Equalised
from normfold.export.forms.int8 import named
from normfold.export.forms.machine import this_machine
from normfold.export.forms.measure import TimeComparison, medians, shapes_of
from normfold.export.forms.remembered import Measurement, Subject, measured_once
from normfold.export.graphs.correcting import correct_shapes
from normfold.export.graphs.runtime import CPU, Runtime, providers_here
from normfold.export.graphs.serialize import to_bytes
from normfold.export.graphs.trial import require_no_crash
from normfold.export.proof.verify import Verification, largest_errors, verify
from normfold.export.sources.origin import Run

__all__ = ["PRECISIONS", "Arrays", "PrecisionReport", "check_precision", "in_float16", "reduce_precision"]

#: The largest error, relative to the output's scale, that each precision may have. Rounding one value costs 2^-11, 2^-8
#: and 2^-8 of it, and networks of ten to twenty layers multiply that.
PRECISIONS: Mapping[str, float] = {"fp16": 0.02, "bf16": 0.1, "int8": 0.2}
#: The largest finite number of float16.
LARGEST_FP16 = float(np.finfo(np.float16).max)
#: The least share of rows whose class must not change.
LABEL_AGREEMENT = 0.98
#: A graph with branches apart has more operators: it is taken where its error is below this part of the other's.
WORTH = 0.95

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class PrecisionReport:
    """Error, run time and size of a reduced precision beside those of the folded float32 graph."""

    precision: str
    verification: Verification
    timing: TimeComparison
    bytes_before: int
    bytes_after: int
    #: Nodes of the reduced graph; BatchNorms and parameters of the float32 graph that it was written from.
    nodes: int
    batchnorms: int
    parameters: int
    #: The inputs that error and labels were measured on.
    measured: DataSet
    #: The inputs that int8 took its value ranges from; None for fp16 and bf16.
    calibration: DataSet | None = None
    #: Why these figures are less certain than they seem.
    warnings: tuple[str, ...] = ()
    #: Operators that stayed in float32, because int8 loses most with them.
    kept: tuple[str, ...] = ()
    #: Layers whose output channels were scaled so that all have about the same range.
    equalised: tuple[str, ...] = ()
    #: Whether sums that the fold takes into convolutions stay sums, because int8 loses less so.
    apart: bool = False
    #: Whether biases make up for the mean error that rounding causes.
    corrected: bool = False


def check_precision(precision: str | None, tests: bool) -> None:
    """Raise early the errors that :func:`reduce_precision` would raise after the export's other work."""
    if precision is not None and precision not in PRECISIONS:
        raise ExportError(f"there is no precision '{precision}'; there are {', '.join(PRECISIONS)}")
    if tests and precision is None:
        raise ExportError(
            "test samples (--test-sample) measure what fewer bits cost: give --quantize or --dtype too, or --sample "
            "for inputs that float32 is proved with"
        )


def reduce_precision(
    content: bytes,
    precision: str,
    reference: Run,
    inputs: Division,
    timed: Arrays,
    *,
    even_if_slower: bool = False,
    remeasure: bool = False,
    threads: int = 1,
    warnings: tuple[str, ...] = (),
    others: Sequence[Equalised] = (),
) -> tuple[bytes, PrecisionReport]:
    """Return the folded graph ``content`` in ``precision``, calibrated and measured on ``inputs``.

    others: graphs of the same function; int8 is written from the one with the smallest error, and from one with
    branches apart, which costs a few operators more, where its error is smaller by a few percent.

    Raises ExportError where onnxruntime cannot run it on this machine or it is slower (unless even_if_slower),
    InputSpecError where int8 finds no value ranges, VerificationError where its error is too large.
    """
    check_precision(precision, tests=False)
    measured = inputs.measured.cases
    providers = providers_here() if precision == "bf16" else (CPU,)
    full = Runtime(content, optimised=True, providers=providers, threads=threads)
    own = largest_errors(reference, [full.run], measured)

    def loss(reduced: bytes) -> tuple[Runtime, Verification]:
        require_no_crash(reduced, measured[0].inputs, f"the network in {precision}", providers)
        fewer = Runtime(reduced, optimised=True, providers=providers, threads=threads)
        found = verify(
            reference, fewer.run, measured, "as for float32", own, lambda own, integers: PRECISIONS[precision], full.run
        )
        return fewer, found

    written: Int8File | None = None
    taken: Equalised | None = None
    if precision != "int8":
        reduced = in_float16(content) if precision == "fp16" else _bfloat16(content)
        fewer, verification = loss(reduced)
        trouble = _trouble(verification, precision, inputs.measured.data)
    else:
        assert inputs.calibration is not None
        pieces = [c.inputs for c in inputs.calibration.cases]
        calibrated = Calibrated(content, pieces)
        for other in others:
            tried = Calibrated(other.graph.content, pieces)
            more = other.apart and not (taken is not None and taken.apart)
            if better(calibrated, tried, WORTH if more else 1.0) is tried:
                calibrated, taken = tried, other
        for kept in (calibrated.kept, *calibrated.more_kept()):
            written = calibrated.written(kept)
            reduced = written.content
            fewer, verification = loss(reduced)
            trouble = _trouble(verification, precision, inputs.measured.data, len(kept))
            if trouble is None:
                break
    if trouble is not None:
        raise trouble
    machine, shapes = this_machine(providers, threads), shapes_of(timed)
    subject = Subject.of({"float32": content, precision: reduced}, shapes, machine)
    known = measured_once(subject, lambda: _measurement({"float32": full, precision: fewer}, timed), remeasure)
    times = known.medians_ms
    timing = TimeComparison(times["float32"], times[precision], known.rounds, shapes, known.remembered)
    if timing.ratio > 1 and not even_if_slower:
        raise ExportError(
            f"{precision} is slower than float32 on this machine ({timing.after_ms:.3f} ms against "
            f"{timing.before_ms:.3f} ms), so "
            "nothing was published; --even-if-slower publishes it for a machine where it is faster"
        )
    source = content if taken is None else taken.graph.content
    batchnorms, _, parameters = counts(ir.from_proto(onnx.load_model_from_string(source)))
    return reduced, PrecisionReport(
        precision=precision,
        verification=_without_meaningless(verification),
        timing=timing,
        bytes_before=len(content),
        bytes_after=len(reduced),
        nodes=len(onnx.load_model_from_string(reduced).graph.node),
        batchnorms=batchnorms,
        parameters=parameters,
        measured=inputs.measured.data,
        calibration=None if inputs.calibration is None else inputs.calibration.data,
        warnings=warnings,
        kept=() if written is None else _titles(calibrated.content, written.kept),
        equalised=() if taken is None else taken.layers,
        apart=taken is not None and taken.apart,
        corrected=written is not None and written.corrected,
    )


def _titles(content: bytes, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names that a person knows these nodes by: of their modules, where they are noted."""
    model = ir.from_proto(named(onnx.load_model_from_string(content)))
    titles = {node.name: module_of(node) or node.name or "" for node in model.graph}
    return tuple(titles[name] for name in names)


def _without_meaningless(verification: Verification) -> Verification:
    """Return it without the label agreement of a single row, which would be 100 % or 0 %."""
    differences = (d if d.rows > 1 else replace(d, label_agreement=None) for d in verification.differences)
    return replace(verification, differences=tuple(differences))


def _measurement(graphs: Mapping[str, Runtime], inputs: Arrays) -> Measurement:
    times, rounds = medians(graphs, inputs)
    return Measurement(times, rounds, min(times, key=times.__getitem__))


def in_float16(content: bytes) -> bytes:
    """Return the graph in float16. Raises ExportError where a weight is beyond its range."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load_model_from_string(content)
    _widen_bounds(model)
    # Infinity is no weight but the bound of a Max or Min that clamps nothing in some channel, and fp16 has it too.
    held = (np.abs(numpy_helper.to_array(t)) for t in _floats(model))
    largest = max((float(a[np.isfinite(a)].max(initial=0)) for a in held), default=0.0)
    if largest > LARGEST_FP16:
        raise ExportError(f"fp16 holds values up to 65504, and a weight of the network is {largest:.3g}")
    reduced = ir.from_proto(convert_float_to_float16(model, keep_io_types=True))
    correct_shapes(reduced)  # the converter infers shapes
    reduced.graph.sort()  # the converter appends the Casts at the end, which onnxruntime takes and ONNX does not
    return to_bytes(reduced)


def _widen_bounds(model: onnx.ModelProto) -> None:
    """Make each bound of a Max or Min infinite that is beyond every finite number of float16: it clamps nothing there.

    Only bounds that no other operator reads are changed.
    """
    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for tensor in _floats(model):
        kinds = readers.get(tensor.name, set())
        if kinds not in ({"Max"}, {"Min"}):
            continue
        bound = numpy_helper.to_array(tensor)
        beyond = bound < -LARGEST_FP16 if kinds == {"Max"} else bound > LARGEST_FP16
        infinite = np.float32(-np.inf if kinds == {"Max"} else np.inf)
        tensor.CopyFrom(numpy_helper.from_array(np.where(beyond, infinite, bound), tensor.name))


def _bfloat16(content: bytes) -> bytes:
    """Return the graph in bfloat16. Raises ExportError that names the operators without a bfloat16 kernel here."""
    reduced, providers = to_bfloat16(content), providers_here()
    missing = missing_kernels(reduced, providers)
    if missing:
        raise ExportError(
            f"bf16 cannot run here, so nothing was published: the onnxruntime that is installed "
            f"({', '.join(providers)}) has no bfloat16 kernels for {', '.join(missing)}. Export it on a "
            "machine with onnxruntime-gpu and its device, or use --dtype fp16 or --quantize int8"
        )
    return reduced


def _trouble(verification: Verification, precision: str, measured: DataSet, kept: int = 0) -> VerificationError | None:
    """Return the error to end with where a precision loses too much, with ``kept`` operators in float32; else None."""
    for d in verification.differences:
        if not d.passed:
            what = d.trouble or (
                f"output '{d.output}' is off by {d.relative:.1%} of its scale, where {d.bound:.0%} is allowed"
            )
            text = f"{precision} loses too much, so nothing was published: {what}. Measured on {measured}"
            return VerificationError(
                f"{text}. {_instead(precision, measured, kept)}", output=d.output, max_abs_diff=d.max_abs, bound=d.bound
            )
        # Inputs that were made from statistics are no data: their scores may be as good as equal.
        agree = None if measured.kind == "synthetic" else d.label_agreement
        if agree is not None and agree < LABEL_AGREEMENT:
            changed = round((1 - agree) * d.rows)
            return VerificationError(
                f"{precision} changes the class in {changed} of {counted(d.rows, 'row')} of '{d.output}' "
                f"({1 - LABEL_AGREEMENT:.0%} are allowed), so nothing was published. Measured on {measured}. "
                f"{_instead(precision, measured, kept)}",
                output=d.output,
            )
    return None


def _instead(precision: str, measured: DataSet, kept: int) -> str:
    """Return what a person can do where a precision loses too much."""
    if precision != "int8":
        return "Leave --dtype out to publish float32"
    which = "the operator" if kept == 1 else f"the {kept} operators"
    tried = f"That is with {which} in float32 that lose{'s' if kept == 1 else ''} most. " if kept else ""
    made = measured.kind == "synthetic"
    use = "Give real inputs with --sample: these were made from statistics. Or use" if made else "Use"
    return f"{tried}{use} --dtype fp16, or leave --quantize out"


def _floats(model: onnx.ModelProto) -> list[TensorProto]:
    return [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
