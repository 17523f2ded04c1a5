"""Does a network in float64 round what it computes, as ``x.float()`` in its code does?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Rounding"]


class Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In the block it notes whether an operator makes floats of fewer digits from floats in float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator."""
        made = func(*args, **(kwargs or {}))
        read = {tensor.dtype for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        floats = (t for t in tree_leaves(made) if isinstance(t, Tensor) and t.is_floating_point())
        self.seen |= torch.float64 in read and any(t.dtype != torch.float64 for t in floats)
        return made
