"""The settings that a server makes once for its whole process."""

from __future__ import annotations

import sys

from normfold.serving.process import memory

#: A thread that waits for the interpreter asks for it after this time, in seconds. Python's own 5 ms are a long wait
#: for a run of 1 ms that has ended: under overload the event loop is always busy.
SWITCH_SECONDS = 0.001


def tune() -> None:
    """Keep freed memory, and hand the interpreter from thread to thread sooner."""
    memory.keep_freed()
    sys.setswitchinterval(SWITCH_SECONDS)
