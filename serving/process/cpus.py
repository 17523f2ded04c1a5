"""The number of CPUs that this process may really use.

In a container the host's count is wrong: the scheduler's affinity mask and the quota of the cgroup limit it, too, and
onnxruntime does not read the quota.
"""

from __future__ import annotations

import math
from pathlib import Path

from normfold.processor import affinity_cpus
from normfold.serving.process.address import UNIX

#: Each worker holds every model in its own memory, so more than this are started only if someone asks for them.
MOST_WORKERS = 4

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC_CGROUP = Path("/proc/self/cgroup")


def available_cpus(root: Path = CGROUP_ROOT, own: Path = PROC_CGROUP) -> int:
    """The CPUs that affinity and cgroup quota (v2 and v1) allow, at least 1."""
    allowed, quota = affinity_cpus(), cgroup_quota(root, own)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def default_workers(device: str, listen: str) -> int:
    """The number of workers where nobody sets it: one for each CPU, at most MOST_WORKERS; one if they could not share.

    The memory of a GPU would hold every model once for each worker, and two processes cannot share a unix socket.
    """
    return min(available_cpus(), MOST_WORKERS) if device == "cpu" and not listen.startswith(UNIX) else 1


def cgroup_quota(root: Path = CGROUP_ROOT, own: Path = PROC_CGROUP) -> float | None:
    """The CPU quota in CPUs, the smallest of this process's cgroup and its parents; None if there is no quota."""
    quotas = []
    for folder in cgroup_folders("cpu", root, own):
        quotas += _read_v2(folder / "cpu.max") + _read_v1(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
    return min(quotas, default=None)


def cgroup_folders(controller: str, root: Path = CGROUP_ROOT, own: Path = PROC_CGROUP) -> list[Path]:
    """The cgroup folders that limit this process, from the root down; in v1 each ``controller`` has its own tree."""
    folders = [root, root / controller]
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return folders
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        here = root / controller if controllers else root
        for part in Path(path.lstrip("/")).parts:
            here = here / part
            folders.append(here)
    return folders


def _read_v2(path: Path) -> list[float]:
    try:
        quota, period = path.read_text(encoding="utf-8").split()
        return [] if quota == "max" else [int(quota) / int(period)]
    except (OSError, ValueError, ZeroDivisionError):
        return []


def _read_v1(quota_path: Path, period_path: Path) -> list[float]:
    try:
        quota = int(quota_path.read_text(encoding="utf-8"))
        return [quota / int(period_path.read_text(encoding="utf-8"))] if quota > 0 else []
    except (OSError, ValueError, ZeroDivisionError):
        return []
