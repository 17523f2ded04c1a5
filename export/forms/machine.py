"""The machine that run times are measured on, as far as they depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normfold.export.graphs.runtime import CPU, THREADS
from normfold.processor import processor_name

__all__ = ["Machine", "this_machine"]


@dataclass(frozen=True)
class Machine:
    """What a run time holds for: with another of any of these it has to be measured again."""

    #: The processor's model, as it names itself: "AMD EPYC 7R13 Processor".
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
    """Describe the machine that runs this, with graphs on ``providers``."""
    import onnxruntime

    return Machine(processor_name(), onnxruntime.__version__, tuple(providers), THREADS)
