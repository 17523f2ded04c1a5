"""Fold an ONNX file of any exporter into another file, with the proof; the opset stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from normfold.export.capture.capture import DEFAULT_OPSET
from normfold.export.choices import AUTO, check_threads, check_variant
from normfold.export.errors import PublishError
from normfold.export.inputs.samples import fit, read_sample
from normfold.export.inputs.specs import parse_inputs
from normfold.export.pipeline import Progress, fold_and_prove
from normfold.export.proof.verify import Case
from normfold.export.publishing.onnx_places import check_places
from normfold.export.publishing.report import ExportReport
from normfold.export.sources.onnx_origin import open_onnx
from normfold.whole_file import write_first, write_whole

__all__ = ["fold_file", "write_file"]


def fold_file(
    source: Path,
    target: Path,
    *,
    inputs: Sequence[str] = (),
    samples: Sequence[Path] = (),
    allow_nonfinite: bool = False,
    overwrite: bool = False,
    variant: str = AUTO,
    remeasure: bool = False,
    threads: int = 1,
    time_at: Mapping[str, int] = MappingProxyType({}),
    fold_all: bool = False,
    progress: Progress = lambda step: None,
) -> ExportReport:
    """Fold ``source`` into ``target`` and return the report. Raises ExportError; then ``target`` is as it was.

    ``source`` is never replaced, so that what is folded can be compared with it. inputs give ranges to dimensions that
    the file leaves open; samples are more inputs to prove with; variant, remeasure, threads, time_at,
    fold_all and allow_nonfinite are those of :class:`normfold.export.request.ExportRequest`.
    """
    check_variant(variant)
    check_threads(threads)
    check_places(source, target, overwrite)
    progress("read the graph")
    origin = open_onnx(source, parse_inputs(inputs), opset=None)
    files = [read_sample(path, allow_nonfinite) for path in samples]
    cases = [Case("sample", f.name, fit(f, origin.specs)) for f in files]
    folded = fold_and_prove(
        origin,
        cases,
        target.stem,
        DEFAULT_OPSET,
        progress,
        variant=variant,
        remeasure=remeasure,
        threads=threads,
        time_at=time_at,
        fold_all=fold_all,
    )
    progress("write")
    write_file(target, folded.content, overwrite)
    return replace(folded.report, model=target.stem, path=str(target))


def write_file(path: Path, content: bytes, overwrite: bool) -> None:
    """Write a file whole or not at all. Raises PublishError where it cannot be written, or was written meanwhile."""
    first = True
    try:
        if overwrite:
            write_whole(path, content)
        else:
            first = write_first(path, content)
    except OSError as error:
        raise PublishError(f"cannot write '{path}': {error.strerror or error}") from error
    if not first:
        raise PublishError(f"'{path}' was written by another program meanwhile; give another name, or --overwrite")
