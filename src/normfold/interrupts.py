"""Ctrl-C while Python imports: the process ends at once, without the traceback of a KeyboardInterrupt.

A KeyboardInterrupt within an import may also be lost: Python prints that it is ignored, and the command goes on.

SIGHUP asks a server for a look at its repository, so it does not end ``normfold serve`` that is still starting.

SIGCHLD may be ignored by the program that started this one, which passes that on. How a child has ended is lost then:
Python takes every one for a success, and waits for some for ever.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["INTERRUPTED", "end_at_once", "end_silently", "hang_up", "raise_again", "wait_for_children"]

#: The exit code of a command that Ctrl-C stopped, as shells have it.
INTERRUPTED = 130


def end_at_once() -> None:
    """End this process at Ctrl-C from now on, unless it ignores Ctrl-C or does something else then.

    Where the command may be ``normfold serve``, SIGHUP does not end it until ``hang_up`` says otherwise.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    if "serve" in sys.argv and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _pass_over)


def wait_for_children() -> None:
    """Learn from now on how each child of this process ends, also where the caller ignores SIGCHLD."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def hang_up(serve: bool) -> None:
    """The command is known: unless it is ``serve``, SIGHUP ends it again, as the end of a terminal should."""
    if not serve and signal.getsignal(signal.SIGHUP) is _pass_over:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def raise_again() -> None:
    """Raise KeyboardInterrupt at Ctrl-C from now on, if ``end_at_once`` has changed that."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_silently() -> None:
    """End this process at Ctrl-C without a word from now on, unless it ignores Ctrl-C: the command is over.

    Python takes half a second to leave torch, and would print the traceback of a KeyboardInterrupt there.
    """
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _end):
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _pass_over(number: int, frame: object) -> None:
    """Ignore SIGHUP: nothing is loaded yet, so there is nothing to look for."""


def _end(number: int, frame: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would write the word again
    try:
        os.write(2, b"stopped\n")
    finally:  # also where nobody reads it
        os._exit(INTERRUPTED)
