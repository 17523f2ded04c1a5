"""The properties of this machine that measured run times depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normfold.counting import counted
from normfold.export.graphs.runtime import CPU
from normfold.processor import processor_name

__all__ = ["Machine", "this_machine"]


@dataclass(frozen=True)
class Machine:
    """The conditions of a measured run time: if any field differs, it must be measured again."""

    #: The model of the processor as the kernel names it: "AMD EPYC 7R13 Processor".
    processor: str
    #: onnxruntime's version.
    onnxruntime: str
    #: The execution providers that ran the graph.
    providers: tuple[str, ...]
    #: The threads that shared the work of one run.
    threads: int

    @property
    def in_words(self) -> str:
        """The number of threads: "1 thread"."""
        return counted(self.threads, "thread")

    def __str__(self) -> str:
        return f"{self.processor}, onnxruntime {self.onnxruntime}, {self.in_words}"


def this_machine(providers: Sequence[str] = (CPU,), threads: int = 1) -> Machine:
    """Describe this machine, for graphs that run on ``providers`` and ``threads``."""
    import onnxruntime

    return Machine(processor_name(), onnxruntime.__version__, tuple(providers), threads)
