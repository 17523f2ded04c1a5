"""What the figures of a benchmark were measured on, named by its kind and never by its host."""

from __future__ import annotations

import platform

from normfold.processor import processor_name
from normfold.serving.process.cpus import available_cpus


def machine() -> str:
    """Processor, how many of it, and Python's version, as a sentence."""
    return f"Measured on {available_cpus()} CPUs ({processor_name()}), Python {platform.python_version()}."
