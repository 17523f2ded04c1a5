"""Fewer bits than float32, on request: each precision has its own proof and is refused where it would be slower.

    fp16    weights and arithmetic in float16; inputs and outputs stay float32
    bf16    the same in bfloat16, where onnxruntime has kernels for it (its CPU provider can only move bfloat16 values)
    int8    static quantization: QDQ nodes, one scale for each output channel, value ranges from the user's samples

The BatchNorms are folded first, and this makes int8 accurate: the range of a convolution's output is then the range
that the next operator reads. Weights use 7 of the 8 bits: on CPUs without VNNI a sum of 8-bit products would exceed 16
bits and saturate without an error.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from normfold.export.errors import ExportError, InputSpecError, VerificationError
from normfold.export.forms.bfloat16 import missing_kernels, to_bfloat16
from normfold.export.forms.machine import this_machine
from normfold.export.forms.measure import TimeComparison, medians, shapes_of
from normfold.export.forms.remembered import Measurement, Subject, measured_once
from normfold.export.graphs.runtime import CPU, Runtime, providers_here
from normfold.export.proof.verify import Case, Difference, Verification, largest_errors, verify
from normfold.export.sources.origin import Run

__all__ = ["PRECISIONS", "PrecisionReport", "check_precision", "reduce_precision"]

#: The largest error, relative to the output's scale, that each precision may have. Rounding one value costs 2^-11, 2^-8
#: and 2^-8 of it, and networks of ten to twenty layers multiply that.
PRECISIONS: Mapping[str, float] = {"fp16": 0.02, "bf16": 0.1, "int8": 0.2}
#: The least share of rows whose class must not change.
LABEL_AGREEMENT = 0.98

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class PrecisionReport:
    """Error, run time and size of a reduced precision beside those of the folded float32 graph."""

    precision: str
    verification: Verification
    timing: TimeComparison
    bytes_before: int
    bytes_after: int


def check_precision(precision: str, has_samples: bool) -> None:
    """Raise early the errors that :func:`reduce_precision` would raise after the export's other work."""
    if precision not in PRECISIONS:
        raise ExportError(f"there is no precision '{precision}'; there are {', '.join(PRECISIONS)}")
    if precision == "int8" and not has_samples:
        raise InputSpecError("int8 reads its value ranges from real inputs: give some with --sample")


def reduce_precision(
    content: bytes,
    precision: str,
    reference: Run,
    cases: Sequence[Case],
    timed: Arrays,
    *,
    even_if_slower: bool = False,
    remeasure: bool = False,
) -> tuple[bytes, PrecisionReport]:
    """Return the folded graph ``content`` in ``precision``, with its proof; cases are those of the float32 proof.

    Raises ExportError where onnxruntime cannot run it on this machine or it is slower (unless even_if_slower),
    InputSpecError where int8 has no samples to calibrate on, VerificationError where its error is too large.
    """
    samples = [c for c in cases if c.kind == "sample"]
    check_precision(precision, bool(samples))
    if precision == "int8":
        reduced = _quantized(content, [c.inputs for c in samples])
    else:
        reduced = _half(content) if precision == "fp16" else _bfloat16(content)
    # The cases of kind "scaled" are left out: their values leave the range that few bits can hold.
    proved = samples or [c for c in cases if c.kind == "random"]
    providers = providers_here() if precision == "bf16" else (CPU,)
    full, fewer = (Runtime(c, optimised=True, providers=providers) for c in (content, reduced))
    own = largest_errors(reference, [full.run], proved)
    verification = verify(
        reference, fewer.run, proved, "as for float32", own, lambda own, integers: PRECISIONS[precision], full.run
    )
    _require(verification, precision)
    machine, shapes = this_machine(providers), shapes_of(timed)
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
    return reduced, PrecisionReport(precision, verification, timing, len(content), len(reduced))


def _measurement(graphs: Mapping[str, Runtime], inputs: Arrays) -> Measurement:
    times, rounds = medians(graphs, inputs)
    return Measurement(times, rounds, min(times, key=times.__getitem__))


def _half(content: bytes) -> bytes:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load_model_from_string(content)
    # Infinity is no weight but the bound of a Max or Min that clamps nothing in some channel, and fp16 has it too.
    held = (np.abs(onnx.numpy_helper.to_array(t)) for t in _floats(model))
    largest = max((float(a[np.isfinite(a)].max(initial=0)) for a in held), default=0.0)
    if largest > float(np.finfo(np.float16).max):
        raise ExportError(f"fp16 holds values up to 65504, and a weight of the network is {largest:.3g}")
    return bytes(convert_float_to_float16(model, keep_io_types=True).SerializeToString(deterministic=True))


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


@contextmanager
def _without_advice() -> Iterator[None]:
    """Hide the advice that the quantizer writes to the root logger, and remove the handler that it adds there."""
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers


def _quantized(content: bytes, samples: Sequence[Arrays]) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self) -> Arrays | None:
            return next(self.rest, None)

    model = onnx.load_model_from_string(content)
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        target = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        quantized = onnx.load(target)
    quantized.metadata_props.clear()
    quantized.metadata_props.extend(model.metadata_props)
    return bytes(quantized.SerializeToString(deterministic=True))


def _require(verification: Verification, precision: str) -> None:
    for d in verification.differences:
        if not d.passed:
            raise VerificationError(_refusal(d, precision), output=d.output, max_abs_diff=d.max_abs, bound=d.bound)
        if d.label_agreement is not None and d.label_agreement < LABEL_AGREEMENT:
            raise VerificationError(
                f"{precision} changes the class of {1 - d.label_agreement:.1%} of the inputs in '{d.output}' "
                f"({1 - LABEL_AGREEMENT:.0%} are allowed), so nothing was published",
                output=d.output,
            )


def _refusal(d: Difference, precision: str) -> str:
    what = d.trouble or f"output '{d.output}' is off by {d.relative:.1%} of its scale, where {d.bound:.0%} is allowed"
    return f"{precision} loses too much, so nothing was published: {what}"


def _floats(model: onnx.ModelProto) -> list[TensorProto]:
    return [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
