"""The processes of a local server and their CPU time, from /proc on Linux; on other systems neither is known."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"


def listeners(address: str, proc: Path = PROC) -> list[int]:
    """The visible processes that listen on "host:port" or "unix:/path" of this host; often none is visible."""
    inodes = _inodes(address, proc) if is_local(address) else set()
    if not inodes:
        return []
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return [pid for pid in _pids(proc) if wanted & _sockets(proc / str(pid) / "fd")]


def is_local(address: str) -> bool:
    """Whether ``address`` belongs to this host, which is so if a socket can be bound to it."""
    if address.startswith("unix:"):
        return True
    try:
        host = address.rpartition(":")[0].strip("[]")
        family, _, _, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(where)
    except OSError:
        return False
    return True


def tree(roots: list[int], proc: Path = PROC) -> list[int]:
    """``roots`` and every process below them, each once."""
    children: dict[int, list[int]] = {}
    for pid in _pids(proc):
        if fields := _stat(pid, proc):
            children.setdefault(int(fields[1]), []).append(pid)
    found: list[int] = []
    left = list(roots)
    while left:
        pid = left.pop()
        if pid not in found:
            found.append(pid)
            left += children.get(pid, [])
    return found


def cpu_seconds(roots: list[int], proc: Path = PROC) -> float | None:
    """User and system CPU time so far of ``roots`` and all processes below them; None if none of them exists."""
    ticks, known = 0, False
    for pid in tree(roots, proc):
        if fields := _stat(pid, proc):
            ticks += int(fields[11]) + int(fields[12])
            known = True
    return ticks / os.sysconf("SC_CLK_TCK") if known else None


def resident_bytes(roots: list[int], proc: Path = PROC) -> list[int]:
    """The resident memory of ``roots`` and all processes below them, the largest first."""
    sizes = []
    for pid in tree(roots, proc):
        try:
            pages = int((proc / str(pid) / "statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError):
            continue
        sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
    return sorted(sizes, reverse=True)


def _pids(proc: Path) -> list[int]:
    try:
        return [int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal()]
    except OSError:
        return []


def _stat(pid: int, proc: Path) -> list[str]:
    """The fields of /proc/PID/stat from the state on; the command before the state may contain any character."""
    try:
        return (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _sockets(folder: Path) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):  # the process is another user's, or has ended
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):  # the socket was closed meanwhile
                found.add(str(entry.readlink()))
    return found


def _inodes(address: str, proc: Path) -> set[str]:
    """The inodes of the listening sockets of ``address``."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        rows = [line.split() for line in _lines(proc / "net" / "unix")]
        return {row[6] for row in rows if len(row) > 7 and row[7] == path}
    port = f"{int(address.rpartition(':')[2]):04X}"
    rows = [line.split() for name in ("tcp", "tcp6") for line in _lines(proc / "net" / name)]
    return {row[9] for row in rows if len(row) > 9 and row[3] == _LISTEN and row[1].endswith(f":{port}")}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    except OSError:
        return []
