"""The properties of this machine that measured run times depend on."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from normfold.export.graphs.runtime import CPU, THREADS

__all__ = ["Machine", "this_machine"]

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """The conditions of a measured run time: if any field differs, it must be measured again."""

    #: The model of the processor as the kernel names it: "AMD EPYC 7R13 Processor".
    processor: str
    #: onnxruntime's version.
    onnxruntime: str
    #: The execution providers that ran the graph.
    providers: tuple[str, ...]
    threads: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.processor}, onnxruntime {self.onnxruntime}, {threads}"


def this_machine(providers: Sequence[str] = (CPU,)) -> Machine:
    """Describe this machine, for graphs that run on ``providers``."""
    import onnxruntime

    return Machine(_processor(), onnxruntime.__version__, tuple(providers), THREADS)


def _processor() -> str:
    """The first processor's model; where the kernel gives it no name, as on many ARM machines, its numbers."""
    try:
        text = _CPUINFO.read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        text = ""
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    if said.get("model name"):
        return said["model name"]
    numbers = [f"{key} {said[key]}" for key in ("CPU implementer", "CPU part", "CPU variant") if said.get(key)]
    return ", ".join([platform.machine(), *numbers])
