"""Where a folded ONNX file and its report may be written; nothing heavy is imported for this."""

from __future__ import annotations

import os
from pathlib import Path

from normfold.export.errors import PublishError, SourceError
from normfold.export.sources.named import require_graph

__all__ = ["check_places", "require_place"]


def check_places(source: Path, target: Path, overwrite: bool) -> None:
    """Raise ExportError where ``source`` is no file to fold, or ``target`` no place to write the result to."""
    if source.suffix != ".onnx":
        raise SourceError(f"'{source}' is not an .onnx file; for a PyTorch network use normfold export")
    require_graph(source)
    if target.suffix != ".onnx":
        raise PublishError(f"'{target}' is no name that verify and serve take for a graph: write '{target}.onnx'")
    if source.exists() and target.exists() and source.samefile(target):
        raise PublishError(
            f"'{target}' is the file that is read: the folded graph would replace the only one that it can be compared "
            "with; give another name, and move it over the first when it has been tried"
        )
    if os.path.lexists(target) and not overwrite:  # also a link that leads nowhere
        raise PublishError(f"'{target}' exists; give another name, or --overwrite")
    if not target.parent.is_dir():
        raise PublishError(f"there is no directory '{target.parent}' to write '{target.name}' into")


def require_place(report: Path, overwrite: bool) -> None:
    """Raise PublishError where the report would replace what is there."""
    if os.path.lexists(report) and not overwrite:
        raise PublishError(f"'{report}' exists; give another name for OUT.onnx, or --overwrite")
