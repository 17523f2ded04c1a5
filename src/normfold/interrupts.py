"""Ctrl-C while Python imports: the process ends at once, without the traceback of a KeyboardInterrupt.

Raised within an import it may also be lost: Python prints that it is ignored, and the command goes on.
"""

from __future__ import annotations

import os
import signal

__all__ = ["INTERRUPTED", "end_at_once", "raise_again"]

#: The exit code of a command that Ctrl-C stopped, as shells have it.
INTERRUPTED = 130


def end_at_once() -> None:
    """End this process at Ctrl-C from now on, unless it ignores Ctrl-C or does something else then."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """Raise KeyboardInterrupt at Ctrl-C from now on, if ``end_at_once`` has changed that."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would write the word again
    try:
        os.write(2, b"stopped\n")
    finally:  # also where nobody reads it
        os._exit(INTERRUPTED)
