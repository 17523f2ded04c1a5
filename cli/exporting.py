"""Shared by the commands that export: their steps, errors as messages, the report in a dozen lines."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, TextIO

import click

from normfold.interrupts import INTERRUPTED

if TYPE_CHECKING:
    from normfold.cli.plain_console import PlainConsole
    from normfold.export.publishing.report import ExportReport

#: The packages of the extra ``export``.
_NEEDED = ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "jinja2")
_AT_STEP = "at the step '"
#: Where there is no terminal, a step that takes longer than this is written: the log of a short export stays empty.
LONG_SECONDS = 30.0

#: Options of both commands that fold and time forms.
fold_all_option = click.option(
    "--fold-all",
    is_flag=True,
    help="Fold all that mathematics allows, also where onnxruntime becomes slower: for quantisers and other runtimes. "
    "Without --form it means --form folded.",
)
timed_threads = click.option(
    "--threads", type=int, default=1, show_default=True, metavar="N",
    help="Time the forms with N threads for each run: as many as the server will give a run.",
)  # fmt: skip

__all__ = ["errors_as_messages", "fold_all_option", "print_report", "prints_apart", "steps", "timed_threads"]


@contextmanager
def errors_as_messages(debug: bool) -> Iterator[list[str]]:
    """End with one message and exit code 1 for any error; --debug shows Python's traceback.

    The block appends what it has written to the list, for the message of a Ctrl-C.
    """
    done: list[str] = []
    try:
        yield done
    except KeyboardInterrupt as stop:
        written = [*getattr(stop, "__notes__", ()), *done]
        click.echo(f"stopped; {' and '.join(written) or 'nothing was written'}", err=True)
        sys.exit(INTERRUPTED)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except (Exception, SystemExit) as error:
        if debug:
            raise
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in _NEEDED:
            raise click.ClickException(
                f"this command needs {error.name}, which is not installed: pip install 'normfold[export,cpu]'"
            ) from None
        raise click.ClickException(_sentence(error)) from None


def _sentence(error: BaseException) -> str:
    """Return the message of an ExportError; for any other error its first line, the step, and the user's line."""
    from normfold.export.errors import ExportError
    from normfold.export.user_code import stopped

    if isinstance(error, ExportError):
        return str(error)
    step = next((note for note in getattr(error, "__notes__", ()) if note.startswith(_AT_STEP)), "")
    step = step.removeprefix(_AT_STEP).removesuffix("'")
    return f"{stopped(error, step)} (--debug shows Python's traceback)"


@contextmanager
def prints_apart() -> Iterator[None]:
    """Send to standard error what the user's code prints in this block: it is not output of the command.

    Also what a library or a child process writes to the file descriptor of standard output.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # standard output or standard error may be closed
            kept = os.dup(1)
            stack.callback(os.close, kept)
            os.dup2(2, 1)
            stack.callback(os.dup2, kept, 1)
            stack.callback(_flush)
        with redirect_stdout(sys.stderr):
            yield


def _flush() -> None:
    """Write what was printed past sys.stdout: by a library of C, or to Python's first standard output."""
    library = ctypes.CDLL(None)
    library.fflush(ctypes.c_void_p.in_dll(library, "stdout"))  # of all files it would wait for threads that read one
    if sys.__stdout__ is not None:
        with suppress(ValueError):  # it is closed
            sys.__stdout__.flush()


@contextmanager
def steps(quiet: bool) -> Iterator[tuple[PlainConsole, Callable[[str], None]]]:
    """Yield a console and a function that is given the name of each step.

    On a terminal it is shown; elsewhere, as in the log of a pipeline, only long steps are written.
    """
    from normfold.cli.plain_console import PlainConsole

    console = PlainConsole(highlight=False, soft_wrap=True)
    terminal = PlainConsole(file=sys.stderr, highlight=False)  # this stream, even while sys.stderr is replaced
    with ExitStack() as stack:
        note = stack.enter_context(_noted())
        show: Callable[[str], None] | None = None
        if not quiet and terminal.is_terminal and os.environ.get("TERM") != "dumb":
            show = stack.enter_context(terminal.status("starting")).update
        elif not quiet:
            show = stack.enter_context(_long_steps(sys.stderr))

        def progress(step: str) -> None:
            note(step)
            if show:
                show(step)

        yield console, progress


@contextmanager
def _long_steps(stream: TextIO) -> Iterator[Callable[[str], None]]:
    """Yield a function that is given the name of each step; one that takes long is written to ``stream``, as a line."""
    timer = threading.Timer(0, print)

    def write(step: str) -> None:
        with suppress(OSError, ValueError):  # it is closed
            print(f"still at the step '{step}' after {LONG_SECONDS:.0f} s", file=stream, flush=True)

    def show(step: str) -> None:
        nonlocal timer
        timer.cancel()
        timer = threading.Timer(LONG_SECONDS, write, [step])
        timer.daemon = True
        timer.start()

    try:
        yield show
    finally:
        timer.cancel()


@contextmanager
def _noted() -> Iterator[Callable[[str], None]]:
    """Yield a function that is given the name of each step; an error gets a note with the step that it came in."""
    current = "starting"

    def note(step: str) -> None:
        nonlocal current
        current = step

    try:
        yield note
    except Exception as error:
        error.add_note(f"{_AT_STEP}{current}'")
        raise


def print_report(report: ExportReport, console: PlainConsole, next_command: str) -> None:
    """Print the report in a dozen lines, and the command that comes next."""
    from rich.markup import escape

    from normfold.export.publishing.summary import print_summary

    print_summary(report, console)
    console.print(f"next: {escape(next_command)}")
