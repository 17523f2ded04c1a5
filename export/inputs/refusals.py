"""Reads from an error of a network what is wrong with the sizes that it was tried at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from normfold.export.inputs.specs import Dimension, InputSpec
from normfold.export.user_code import first_line

__all__ = ["head", "hints", "out_of_memory"]

_BATCH_HINT = "; a batch is a first dimension with a name, x=FP32[N,…]"
_FLOAT_HINT = "; INT64 is for indices, a signal is FP32"
#: torch's words where a network asks for a GPU; a list of backends in other errors has CUDA, too.
_GPU_WANTED = re.compile(r"CUDA (enabled|error|GPU)|NVIDIA driver|\bcuda:\d|torch\.cuda\.")
_CPU_HINT = "; the export runs on the CPU: write x.to(other.device), or device=x.device, in place of .cuda()"
#: The end of the first line of torch's errors that list every overload below it.
_OVERLOADS = ", but expected one of:"


def head(error: BaseException | None) -> str:
    """Return the first line of an error, without a full stop."""
    return "" if error is None else first_line(error).removesuffix(_OVERLOADS).rstrip(".")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether a run failed for lack of memory, which says nothing of the sizes that a network takes."""
    return isinstance(error, MemoryError) or re.search("(out of|allocate|enough) memory", str(error)) is not None


def hints(specs: Sequence[InputSpec], error: BaseException) -> str:
    """Return what to write otherwise in ``specs``, at none of whose sizes the network runs."""
    integers = [spec for spec in specs if spec.datatype.dtype.kind in "iu"]
    batched = any(spec.dims and isinstance(spec.dims[0], Dimension) for spec in specs)
    return (
        ("" if batched else _BATCH_HINT)
        + _index_hint(integers, error)
        + (_CPU_HINT if _GPU_WANTED.search(str(error)) else "")
        + (_FLOAT_HINT if integers and "long" in head(error).lower() else "")
    )


def _index_hint(integers: Sequence[InputSpec], error: BaseException) -> str:
    """Advice where the declared values of an integer input lead out of a table."""
    spec = next((s for s in integers if s.values), None)
    if spec is None or not re.search(r"index\b.*out of (range|bounds)", str(error)):
        return ""
    bare = replace(spec, values=None, limit="")
    return f"; {spec} holds numbers beyond a table: leave them out, --input '{bare}', and those it takes are found"
