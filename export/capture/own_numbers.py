"""A network in float64, with the numbers that its code takes from its own type: the epsilon of float32.

``torch.finfo(x.dtype).eps`` and an RMSNorm without eps give another number in float64. The exact answer is that of the
network as it is, so there these numbers are those of the type that the network computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["OwnNumbers"]

_FINFO = torch.finfo


class OwnNumbers(TorchFunctionMode):
    """While active, float64 has the epsilon and the bounds of ``dtype``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __enter__(self) -> OwnNumbers:
        vars(torch)["finfo"] = self._finfo
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: object) -> None:
        vars(torch)["finfo"] = _FINFO
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def _finfo(self, dtype: torch.dtype | None = None) -> torch.finfo:
        asked = dtype or torch.get_default_dtype()
        return _FINFO(self._dtype if asked is torch.float64 else asked)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Give an RMSNorm without eps the epsilon of the network's type; pass on every other call."""
        given = dict(kwargs or {})
        if func in (F.rms_norm, torch.rms_norm, torch.ops.aten.rms_norm.default):
            named = dict(zip(("input", "normalized_shape", "weight", "eps"), args, strict=False)) | given
            if named.get("eps") is None:
                named["eps"] = _FINFO(self._dtype).eps
            return func(**named)
        return func(*args, **given)
