"""Who reads a tensor's numbers: all readers but those that ask for its size alone."""

from __future__ import annotations

from normfold.export.fold.net import Op, Tensor
from normfold.export.graphs.domains import STANDARD

__all__ = ["number_readers"]


def number_readers(tensor: Tensor) -> list[Op]:
    """Return the operators that read what the tensor holds; one that reads it twice is there twice."""
    return [op for op in tensor.readers if not (op.node.op_type in ("Shape", "Size") and op.node.domain in STANDARD)]
