"""What the figures of a benchmark were measured on, named by its kind and never by its host."""

from __future__ import annotations

import platform
from pathlib import Path

from normfold.serving.threads import available_cpus


def machine() -> str:
    """Processor, how many of it, and Python's version, as a sentence."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"Measured on {available_cpus()} CPUs ({name}), Python {platform.python_version()}."
