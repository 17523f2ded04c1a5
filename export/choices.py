"""What options of an export may be; nothing heavy is imported to check them."""

from __future__ import annotations

from normfold.counting import counted
from normfold.export.errors import ExportError
from normfold.processor import affinity_cpus

__all__ = ["AUTO", "OPSETS", "VARIANTS", "check_opset", "check_threads", "check_variant"]

#: Every variant, and the word that leaves the choice to the measured run times.
VARIANTS = ("unfolded", "folded", "lifted", "widened", "blocked")
AUTO = "auto"
#: The opsets that can be written. The newest is the last that onnxruntime 1.32 loads and of which every operator that
#: the fold reads was compared with opset 23 (tests/export/graphs/test_opsets.py).
OPSETS = range(18, 29)


def check_opset(opset: int, opsets: range = OPSETS) -> None:
    """Raise ExportError for an opset that cannot be written; ``opsets``: those that the installed onnx knows."""
    if opset not in opsets:
        raise ExportError(f"opset {opset} cannot be written; expected {opsets.start} to {opsets.stop - 1}")


def check_variant(name: str) -> None:
    """Raise ExportError where there is no variant of that name."""
    if name != AUTO and name not in VARIANTS:
        raise ExportError(
            f"there is no form '{name}'; there are {', '.join(VARIANTS)}, and {AUTO} for the fastest of them"
        )


def check_threads(threads: int) -> None:
    """Raise ExportError where this machine has fewer CPUs than ``threads``: a run cannot be timed on them here."""
    cpus = affinity_cpus()
    if not 1 <= threads <= cpus:
        there = counted(cpus, "CPU")
        raise ExportError(
            f"--threads {threads}: the forms are timed on this machine, which has {there}; give 1 to {cpus}"
        )
