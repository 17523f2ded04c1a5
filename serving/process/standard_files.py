"""Standard input, output and error: a server goes on when they are closed."""

from __future__ import annotations

import os
import sys


def open_missing() -> None:
    """Open /dev/null in the place of each of the three that is closed.

    Otherwise a socket of the server gets its number: what a library prints goes to a client, and libuv ends the
    process when that socket is closed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # open() takes the lowest number that is free, and those below are open by now
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
            os.set_inheritable(descriptor, True)  # for the workers
    # Python has None for a file that was closed when it started.
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
