"""SIGTERM and Ctrl-C: the first asks the server to stop, the second ends the process at once, whatever it does."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys

#: The flag of sigaction(2) that gives a signal its default action back as soon as it has arrived once.
SA_RESETHAND = 0x80000000


class _SignalAction(ctypes.Structure):
    """``struct sigaction`` of the C libraries of Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_uint),
        ("restorer", ctypes.c_void_p),
    )


def stop_signal() -> asyncio.Event:
    """An event that SIGTERM and Ctrl-C set; a second signal ends the process at once.

    On Linux the kernel itself does that, so it works also while the event loop, or all of Python, is stuck. Not for the
    first process of a container: the kernel drops a signal with the default action there, so the event loop does it.
    """
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError):  # not on this platform, or not the main thread
            loop.add_signal_handler(number, on_signal)
            if os.getpid() != 1:
                _handle_once(number)
    return stop


def _handle_once(number: signal.Signals) -> None:
    """Let the handler of a signal run for the first one only; the next has the default action."""
    if sys.platform != "linux":
        return
    libc, action = ctypes.CDLL(None), _SignalAction()
    if libc.sigaction(int(number), None, ctypes.byref(action)) == 0:
        action.flags |= SA_RESETHAND
        libc.sigaction(int(number), ctypes.byref(action), None)
