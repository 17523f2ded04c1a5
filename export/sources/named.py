"""The files that a user names: whether each is there, before PyTorch is imported, which takes seconds."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from normfold.export.errors import CheckpointError, InputSpecError, SourceError
from normfold.export.sources.defined import defined_names, whole_networks

__all__ = [
    "BOTH_SERVED",
    "names_file",
    "no_labels",
    "no_weights",
    "require_code",
    "require_files",
    "require_graph",
    "split_source",
]

#: Why two served models are not compared: one of them must say which inputs there are.
BOTH_SERVED = "both sides are served models; one of the two must be a module or a file"


def require_files(
    source: str = "", weights: Iterable[Path] = (), labels: Path | None = None, samples: Iterable[Path] = ()
) -> None:
    """Raise ExportError for the first of these files that is not there; ``source``: a network as the user names it."""
    if Path(source).suffix in (".onnx", ".pt2"):
        require_graph(Path(source))
    elif ":" in source and names_file(place := split_source(source)[0]):
        require_code(Path(place))
    for path in weights:
        if _is_missing(path):
            raise no_weights(path)
    if labels is not None and _is_missing(labels):
        raise no_labels(labels)
    for path in samples:
        if not path.is_file():
            raise InputSpecError(f"no sample file '{path}'")


def require_graph(path: Path) -> None:
    """Raise SourceError where there is no such file of a network."""
    if not path.is_file():
        raise SourceError(f"no file '{path}'{_hint(path, '*')}")


def require_code(path: Path) -> None:
    """Raise SourceError where there is no such file of Python code."""
    if not path.is_file():
        raise SourceError(f"no file '{path}' (looked in {Path.cwd()}){_hint(path, '*.py')}")


def no_weights(path: Path) -> CheckpointError:
    """The error for a file of weights that is not there."""
    return CheckpointError(f"no file of weights '{path}'{_hint(path, '*')}")


def no_labels(path: Path) -> InputSpecError:
    """The error for a file of labels that is not there."""
    return InputSpecError(f"no file of labels '{path}'{_hint(path, '*')}")


def names_file(place: str) -> bool:
    """Whether ``place``, what ``split_source`` finds, is a file and no module."""
    return place.endswith(".py") or "/" in place


def split_source(text: str) -> tuple[str, str]:
    """Return (module or path, attribute) of ``text``. Raises SourceError where either is missing.

    >>> split_source("nets/mynets.py:SurnameCNN")
    ('nets/mynets.py', 'SurnameCNN')
    """
    place, colon, attr = text.rpartition(":")
    if not colon or not place or not attr:
        missing = text.rstrip(":")
        if missing.endswith(".py") and (names := defined_names(Path(missing))):
            whole = whole_networks(Path(missing)) or names[:1]
            raise SourceError(
                f"'{text}' does not say which network: expected FILE.py:NAME. The file defines {', '.join(names)}: "
                f"{' or '.join(f'{missing}:{name}' for name in whole)}"
            )
        raise SourceError(
            f"'{text}' does not name a network: expected FILE.py:NAME or package.module:NAME, "
            f"for example {missing if missing.endswith('.py') else 'mynets.py'}:SurnameCNN"
        )
    return place, attr


def _is_missing(path: Path) -> bool:
    """Whether there is nothing at ``path``. Of what may not be looked at, its reader says why."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _hint(path: Path, pattern: str) -> str:
    """The file with nearly this name, if there is one."""
    others = [beside.name for beside in path.parent.glob(pattern) if beside.name != path.name]  # it is no file itself
    near = difflib.get_close_matches(path.name, others, n=1, cutoff=0.75)
    return f"; did you mean '{path.parent / near[0]}'?" if near else ""
