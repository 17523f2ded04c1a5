"""Processes of ours that run a module of ours."""

from __future__ import annotations

import asyncio
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
    flags = [] if {"", _here()} & set(sys.path) else ["-P"]
    return [sys.executable, *flags, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """The environment in which a process finds the same modules as this one."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folder or _here() for folder in sys.path)}


def _here() -> str:
    """The working directory; "" where somebody has deleted it, as with old releases: this server goes on."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return ""


def end_with(parent: int) -> None:
    """Let the kernel end this process when ``parent``, which started it, has ended; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)


async def collect_orphans(seconds: float) -> None:
    """Take the exit codes of processes that nobody else waits for, looking for them every ``seconds``.

    The first process of a container gets the processes whose parent was killed, such as those in which a killed worker
    tried models. The event loop takes the exit codes of its own children at once: what is there at two looks is no
    child of its own.
    """
    seen = 0
    while True:
        await asyncio.sleep(seconds)
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None and ended.si_pid == seen:
                os.waitpid(seen, os.WNOHANG)
            seen = 0 if ended is None else ended.si_pid
        except ChildProcessError:  # there is none
            seen = 0


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
