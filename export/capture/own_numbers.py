"""A network in float64, with the numbers that its code takes from its own type: the epsilon of float32.

``torch.finfo(x.dtype).eps`` and an RMSNorm without eps give another number in float64. The exact answer is that of the
network as it is, so there these numbers are those of the type that the network computes in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["own_numbers"]

_FINFO = torch.finfo
_RMS_NORM = (F.rms_norm, torch.rms_norm, torch.ops.aten.rms_norm.default)


@contextlib.contextmanager
def own_numbers(dtype: torch.dtype, graph: bool = False) -> Iterator[None]:
    """In the block float64 has the epsilon and the bounds of ``dtype``.

    Functions are put in the place of torch's, because torch takes no fast paths while a mode sees each call: the
    network's code would run other lines than its user's. A ``graph`` has no such code, and its operators cannot be
    replaced: there it is a mode.
    """

    def finfo(asked: torch.dtype | None = None) -> torch.finfo:
        asked = asked or torch.get_default_dtype()
        return _FINFO(dtype if asked is torch.float64 else asked)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(torch, "finfo", finfo))
        if graph:
            stack.enter_context(_Mode(dtype))
        else:
            for module, function in ((F, F.rms_norm), (torch, torch.rms_norm)):
                stack.enter_context(_replaced(module, "rms_norm", _with_own_eps(function, dtype)))
        yield


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """In the block ``module`` has ``function`` by this name."""
    before = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, before)


class _Mode(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Give an RMSNorm without eps the epsilon of the network's type; pass on every other call."""
        called = _with_own_eps(func, self._dtype) if func in _RMS_NORM else func
        return called(*args, **(kwargs or {}))


def _with_own_eps(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """A function like torch's rms_norm, in which no eps means the epsilon of ``dtype``."""

    def normed(*args: Any, **given: Any) -> Any:
        named = dict(zip(("input", "normalized_shape", "weight", "eps"), args, strict=False)) | given
        if named.get("eps") is None:
            named["eps"] = _FINFO(dtype).eps
        return function(**named)

    return normed
