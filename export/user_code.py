"""Find the line of the user's own code in a stack: lines of torch, Python or this package do not help the user."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

__all__ = [
    "cure_of_import",
    "current_line",
    "first_line",
    "line_of_error",
    "line_of_text",
    "place_and_reason",
    "stopped",
]

_OURS = tuple(str(Path(__file__).resolve().parent.parent / name) + os.sep for name in ("export", "cli"))
_STDLIB = sysconfig.get_paths()["stdlib"] + os.sep
_FOREIGN = tuple(f"{os.sep}{name}{os.sep}" for name in ("torch", "sympy", "onnxscript", "onnx_ir", "onnx"))

#: Names that a notebook uses without an import, also where it was saved as a program.
_OF_NOTEBOOKS = ("get_ipython", "display")


def line_of_error(error: BaseException) -> str:
    """Return "mynets.py:12 in forward: `x = self.conv(x)`" for the innermost user frame of ``error``, or ""."""
    lines = [_innermost(traceback.extract_tb(tb)) for tb in _tracebacks(error)]
    return next((line for line in lines if line), "") or line_of_text(str(error))


def first_line(error: object) -> str:
    """Return the first line of an error's text, or the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def place_and_reason(error: BaseException) -> str:
    """Return the end of a sentence about an error: " at mynets.py:12 in forward: reason", or ": reason"."""
    line = line_of_error(error)
    return f"{f' at {line}' if line else ''}: {first_line(error)}"


def stopped(error: BaseException, step: str) -> str:
    """Return one sentence for an error that no message was written for: the step, the user's line, the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"
    line = line_of_error(error)
    place = f" at the step '{step}'" if step else ""
    return f"stopped{place}{f' at {line}' if line else ''}, nothing was written: {reason}"


def cure_of_import(error: BaseException) -> str:
    """Return the end of a sentence about an import of the user's that failed: what to do, where that is known."""
    if isinstance(error, NameError) and error.name in _OF_NOTEBOOKS:
        return ". Only Jupyter defines it: delete the lines of the notebook itself, or copy the network to its own file"
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not package or package in sys.modules:  # a part is missing in a package that is there
        return ""
    return (
        f". If it is a package, install it for {sys.executable}; if it is code of yours, set PYTHONPATH to the folder "
        f"that holds {package}"
    )


def current_line() -> str:
    """Return the same for the code that is running now, or ""."""
    return _innermost(traceback.extract_stack(sys._getframe(1)))


def line_of_text(text: str) -> str:
    """Return the same for a stack that torch wrote as text (`File "net.py", line 12, in forward`), or ""."""
    frames = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        head = line.strip()
        if head.startswith('File "') and '", line ' in head:
            file, _, rest = head[6:].partition('", line ')
            digits, _, name = rest.partition(", in ")
            source = lines[number + 1].strip() if number + 1 < len(lines) else ""
            if digits.isdigit():
                frames.append(traceback.FrameSummary(file, int(digits), name or "?", lookup_line=False, line=source))
    return _innermost(frames)


def _tracebacks(error: BaseException | None) -> Iterable[TracebackType]:
    while error is not None:
        if error.__traceback__ is not None:
            yield error.__traceback__
        error = error.__cause__ or error.__context__


def _innermost(frames: Iterable[traceback.FrameSummary]) -> str:
    for frame in reversed(list(frames)):
        if _is_users(frame.filename):
            code = f": `{frame.line}`" if frame.line else ""
            return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}{code}"
    return ""


def _is_users(filename: str) -> bool:
    real = os.path.realpath(filename) if not filename.startswith("<") else filename
    if real.startswith(("<", *_OURS)):
        return False
    if "site-packages" in real:
        inside = real[real.rindex("site-packages") :]
        return not any(part in inside for part in (*_FOREIGN, f"{os.sep}click{os.sep}", "_pytest", "pluggy"))
    return not real.startswith(_STDLIB) and not real.endswith(f"{os.sep}bin{os.sep}normfold")
