"""Capture a network that limits its own weights in forward(), as ``self.weight.data = torch.renorm(...)`` does.

torch cannot capture what is written through ``.data``. Such a limit changes nothing once it is applied, so the network
is run first and keeps what it has written. Then it is captured with these writes left out. Whether that is the same
network is for the proof to say: the network itself applies its limits in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from normfold.export.errors import CaptureError

__all__ = ["WritesLeftOut", "moves_on", "own_copies"]

#: How often a network is run to see whether its weights go on changing, and how far they may: in units of rounding.
RUNS, UNITS = 16, 4


class WritesLeftOut(TorchFunctionMode):
    """While active, ``.data`` of a weight or a buffer of ``network`` is a copy of it, and writing it does nothing.

    What is written into ``.data`` of another tensor, such as an answer of a layer, is captured.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace these two; pass on every other call."""
        reads = func == torch.Tensor.data.__get__  # type: ignore[attr-defined]
        writes = func == torch.Tensor.data.__set__  # type: ignore[attr-defined]
        if reads or writes:
            own = any(args[0] is t for t in (*self._network.parameters(), *self._network.buffers()))
            if reads:
                return args[0].detach().clone() if own else args[0].detach()
            if own:
                return None
            raise CaptureError(
                "the network assigns .data of a tensor that is no weight or buffer of it while it runs, which torch "
                "cannot capture; give the new tensor another name instead"
            )
        return func(*args, **(kwargs or {}))


def moves_on(network: nn.Module, run: Callable[[], Any]) -> bool:
    """Whether the weights of ``network`` change in run after run, by more than what a limit rounds when it is repeated.

    A moving average does, even where it is so slow that no single answer shows it.
    """
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for _ in range(RUNS):
        run()
    return any(_moved(before[name], p.detach()) for name, p in network.named_parameters() if p.numel())


def _moved(before: Tensor, now: Tensor) -> bool:
    if not before.is_floating_point():
        return not torch.equal(before, now)
    bound = UNITS * torch.finfo(before.dtype).eps * float(before.abs().max())
    return not torch.allclose(before, now, rtol=0.0, atol=bound, equal_nan=True)


def own_copies(program: ExportedProgram) -> None:
    """Give ``program`` copies of its weights, so that it keeps them when the network gets back those it was given."""
    copies: dict[int, Tensor] = {}  # one for a weight of several names
    for table in (program.state_dict, program.constants):
        for name, tensor in table.items():
            if isinstance(tensor, Tensor):
                if id(tensor) not in copies:
                    copied = tensor.detach().clone()
                    copies[id(tensor)] = nn.Parameter(copied, False) if isinstance(tensor, nn.Parameter) else copied
                table[name] = copies[id(tensor)]
