"""What an export did, as a value: the command prints it, ``export.json`` holds it, the HTML page shows it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from normfold.export.fold import FoldReport
from normfold.export.measure import Timing
from normfold.export.precision import PrecisionReport
from normfold.export.variants import Variant
from normfold.export.verify import Verification

__all__ = ["ExportReport", "as_json"]


@dataclass(frozen=True)
class ExportReport:
    """One export, whole."""

    #: The model's name and version in the repository.
    model: str
    version: int
    #: Where it was written.
    path: str
    #: "mynets.py:SurnameCNN", and the sha256 of its file and of the weights ("" where there was none).
    source: str
    source_sha256: str
    weights: str
    weights_sha256: str
    #: "x=FP32[N:1..,77,L:9..]"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    folding: FoldReport
    #: Size of the graph's file before and after the fold.
    bytes_before: int
    bytes_after: int
    verification: Verification
    timing: Timing
    #: sha256 of model.onnx.
    sha256: str
    #: Versions of what made it: normfold, torch, onnx, onnxruntime.
    versions: dict[str, str]
    #: What the person should know: prefixes stripped, eval() called, sizes that could not be tried.
    notes: tuple[str, ...] = ()
    #: Every form of the network that was timed, the published one marked.
    variants: tuple[Variant, ...] = ()
    #: The reduced precision that was published in float32's place, if one was.
    precision: PrecisionReport | None = None


def as_json(report: ExportReport) -> dict[str, Any]:
    """Return the report as plain dicts, lists and numbers, the derived figures included."""
    content: dict[str, Any] = dataclasses.asdict(report)
    content["schema"] = 1
    for entry, fold in zip(content["folding"]["folds"], report.folding.folds, strict=True):
        entry["reason"] = fold.reason
    content["verification"]["passed"] = report.verification.passed
    for entry, difference in zip(content["verification"]["differences"], report.verification.differences, strict=True):
        entry["passed"] = difference.passed
        entry["ratio"] = difference.ratio if difference.ratio != float("inf") else None
    content["timing"]["ratio"] = report.timing.ratio
    return content
