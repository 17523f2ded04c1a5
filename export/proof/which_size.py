"""At which size of a dimension a captured graph is not the network, where it is at all others."""

from __future__ import annotations

from collections.abc import Sequence

from normfold.export.inputs.samples import sample_sizes
from normfold.export.inputs.specs import InputSpec, dimensions
from normfold.export.proof.verify import Case, Run, largest_errors

__all__ = ["size_apart"]


def size_apart(network: Run, graph: Run, cases: Sequence[Case], specs: Sequence[InputSpec], most: float) -> str:
    """Return "N = 1" where every case with that size is off by more than ``most``, and no case with another size.

    Return "" where no single size separates these cases from the others.
    """
    sizes = [sample_sizes(case.inputs, specs, case.name) for case in cases]
    off = [max(largest_errors(network, [graph], [case]).values(), default=0.0) > most for case in cases]
    for name in (d.name for d in dimensions(specs)):
        wrong = {each[name] for each, is_off in zip(sizes, off, strict=True) if is_off}
        right = {each[name] for each, is_off in zip(sizes, off, strict=True) if not is_off}
        if len(wrong) == 1 and right and not wrong & right:
            return f"{name} = {wrong.pop()}"
    return ""
