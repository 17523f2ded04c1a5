"""Who reads a tensor's numbers: all readers but those that ask for its size alone."""

from __future__ import annotations

from normfold.export.fold.net import Op, Tensor

__all__ = ["number_readers"]


def number_readers(tensor: Tensor) -> list[Op]:
    """Return the operators that read what the tensor holds; one that reads it twice is there twice."""
    return [op for op in tensor.readers if op.node.op_type not in ("Shape", "Size")]
