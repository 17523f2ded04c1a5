"""The machine that figures were measured on, described without its host name."""

from __future__ import annotations

import platform

from normfold.processor import processor_name
from normfold.serving.process.cpus import available_cpus


def machine() -> str:
    """Return one sentence: the number of CPUs, the processor's name, the version of Python."""
    return f"Measured on {available_cpus()} CPUs ({processor_name()}), Python {platform.python_version()}."
