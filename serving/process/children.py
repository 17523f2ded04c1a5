"""Processes of ours that run a module of ours."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

#: From Linux's sys/prctl.h.
PR_SET_PDEATHSIG = 1


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` with this Python.

    A console script does not look for modules in the working directory; the process must not either.
    """
    flags = [] if {"", str(Path.cwd())} & set(sys.path) else ["-P"]
    return [sys.executable, *flags, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """The environment in which a process finds the same modules as this one."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)}


def end_with(parent: int) -> None:
    """Let the kernel end this process when ``parent``, which started it, has ended; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)


def resident_bytes(pid: int) -> int:
    """The memory that process ``pid`` has at this moment; 0 where the system does not say."""
    return _status(pid, "VmRSS")


def most_resident_bytes(pid: int) -> int:
    """The most memory that process ``pid`` ever had; 0 where the system does not say."""
    return _status(pid, "VmHWM")


def _status(pid: int, key: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), 0)
