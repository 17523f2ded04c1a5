"""This machine's processor: its name, because run times hold for one processor only, and its CPUs."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

__all__ = ["affinity_cpus", "processor_name"]

_CPUINFO = Path("/proc/cpuinfo")
#: Together these identify an ARM core, for which Linux mostly gives no name.
_NUMBERS = ("CPU implementer", "CPU part", "CPU variant")


def processor_name(cpuinfo: Path = _CPUINFO) -> str:
    """Return the first processor's model name, as Linux gives it in ``cpuinfo``: "AMD EPYC 7R13 Processor".

    Without the marks of its owner, "(R)" and "(TM)": the name stands in sentences and brackets.
    Without a model name, as on most ARM machines: the architecture and the numbers of the core, as in "aarch64, CPU
    implementer 0x41, CPU part 0xd40, CPU variant 0x1". Where the file gives neither: the architecture alone.
    """
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    if name := fields.get("model name"):
        return re.sub(r"\((?:R|TM)\)", "", name)
    return ", ".join([platform.machine(), *(f"{key} {fields[key]}" for key in _NUMBERS if fields.get(key))])


def affinity_cpus() -> int:
    """CPUs that the scheduler may put this process on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
