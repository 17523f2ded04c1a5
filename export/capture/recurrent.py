"""Keep LSTM and GRU whole while torch captures a network.

``torch.export`` (2.13) writes a recurrent layer out step by step, which fixes the length and makes a graph of
thousands of nodes. Inside :class:`WholeRecurrence` the call becomes one custom operator with the same arguments. The
translation to ONNX treats it as torch's ``aten::lstm`` or ``aten::gru``: one ONNX LSTM or GRU node for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript.function_libs.torch_lib.ops.core import aten_gru, aten_lstm
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["TRANSLATIONS", "WholeRecurrence"]

_ARGUMENTS = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first"
)


@torch.library.custom_op(
    "normfold::lstm", mutates_args=(), schema=f"(Tensor input, Tensor[] hx, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)"
)
def lstm(input: Tensor, hx: Sequence[Tensor], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``aten::lstm.input``."""
    y, h, c = torch.lstm(input, list(hx), *arguments)
    return y, h, c


@lstm.register_fake
def _(input: Tensor, hx: Sequence[Tensor], *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    bidirectional, projected = arguments[5], hx[0].shape[-1]
    return input.new_empty(_output(input, projected, bidirectional)), torch.empty_like(hx[0]), torch.empty_like(hx[1])


@torch.library.custom_op(
    "normfold::gru", mutates_args=(), schema=f"(Tensor input, Tensor hx, {_ARGUMENTS}) -> (Tensor, Tensor)"
)
def gru(input: Tensor, hx: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Compute ``aten::gru.input``."""
    y, h = torch.gru(input, hx, *arguments)
    return y, h


@gru.register_fake
def _(input: Tensor, hx: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return input.new_empty(_output(input, hx.shape[-1], arguments[5])), torch.empty_like(hx)


#: For ``torch.onnx.export(custom_translation_table=…)``.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.normfold.lstm.default: aten_lstm,
    torch.ops.normfold.gru.default: aten_gru,
}


class WholeRecurrence(TorchFunctionMode):
    """While active, ``nn.LSTM`` and ``nn.GRU`` on plain (not packed) sequences are captured as one operator each."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the two calls; pass on every other call."""
        if (
            not kwargs and len(args) == 9 and isinstance(args[3], bool)
        ):  # a packed sequence has its batch sizes as second argument
            if func is torch.lstm:
                return torch.ops.normfold.lstm(*args)
            if func is torch.gru:
                return torch.ops.normfold.gru(*args)
        return func(*args, **(kwargs or {}))


def _output(input: Tensor, hidden: int, bidirectional: bool) -> tuple[Any, ...]:
    """Return the shape of the layer's output: (steps, batch, features) or (batch, steps, features)."""
    return (*input.shape[:-1], hidden * (2 if bidirectional else 1))
