"""Capture a network that limits its own weights in forward(), as ``self.weight.data = torch.renorm(...)`` does.

torch cannot capture what is written through ``.data``. Such a limit changes nothing once it is applied, so the network
is run first and keeps what it has written. Then it is captured with these writes left out. Whether that is the same
network is for the proof to say: the network itself applies its limits in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

__all__ = ["WritesLeftOut", "own_copies"]


class WritesLeftOut(TorchFunctionMode):
    """While active, ``.data`` of a tensor is a copy of it, and writing ``.data`` does nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace these two; pass on every other call."""
        if func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach().clone()
        if func == torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            return None
        return func(*args, **(kwargs or {}))


def own_copies(program: ExportedProgram) -> None:
    """Give ``program`` copies of its weights, so that it keeps them when the network gets back those it was given."""
    for name, tensor in program.state_dict.items():
        copied = tensor.detach().clone()
        program.state_dict[name] = (
            torch.nn.Parameter(copied, False) if isinstance(tensor, torch.nn.Parameter) else copied
        )
