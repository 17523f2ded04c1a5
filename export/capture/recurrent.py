"""Keep LSTM, GRU and RNN whole while torch captures a network.

``torch.export`` (2.13) writes a recurrent layer out step by step, which fixes the length and makes a graph of
thousands of nodes. Inside :class:`WholeRecurrence` the call becomes one custom operator with the same arguments. The
translation to ONNX treats it as torch's ``aten::lstm`` or ``aten::gru``: one ONNX LSTM or GRU node for each layer. For
``nn.RNN`` there is no such translation, so it is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.core import aten_gru, aten_lstm
from torch import Tensor
from torch.overrides import TorchFunctionMode

from normfold.export.errors import CaptureError

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


@torch.library.custom_op(
    "normfold::rnn",
    mutates_args=(),
    schema=f"(Tensor input, Tensor hx, bool rectified, {_ARGUMENTS}) -> (Tensor, Tensor)",
)
def rnn(input: Tensor, hx: Tensor, rectified: bool, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Compute ``aten::rnn_relu.input`` or ``aten::rnn_tanh.input``."""
    y, h = (torch.rnn_relu if rectified else torch.rnn_tanh)(input, hx, *arguments)
    return y, h


@rnn.register_fake
def _(input: Tensor, hx: Tensor, rectified: bool, *arguments: Any) -> tuple[Tensor, Tensor]:
    return input.new_empty(_output(input, hx.shape[-1], arguments[5])), torch.empty_like(hx)


def _translated(
    input: Any,
    hx: Any,
    rectified: bool,
    params: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, Any]:
    """One ONNX RNN node for each layer. ``params`` are W_ih, W_hh, b_ih and b_hh of each direction of each layer."""
    op: Any = opset18  # its own annotations do not allow an operator's result as an operand
    directions, each = 2 if bidirectional else 1, 4 if has_biases else 2
    first = op.Constant(value_ints=[0])
    x = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
    last = []
    for layer in range(num_layers):
        own = [params[(layer * directions + n) * each : (layer * directions + n + 1) * each] for n in range(directions)]
        # Each with an axis of directions first.
        held = [op.Concat(*[op.Unsqueeze(parts[kind], first) for parts in own], axis=0) for kind in range(each)]
        biases = op.Concat(held[2], held[3], axis=1) if has_biases else None
        begin, end = (op.Constant(value_ints=[n * directions]) for n in (layer, layer + 1))
        y, h = op.RNN(
            x,
            held[0],
            held[1],
            biases,
            None,
            op.Slice(hx, begin, end, first),
            activations=["Relu" if rectified else "Tanh"] * directions,
            direction="bidirectional" if bidirectional else "forward",
            hidden_size=hx.shape[2],
        )
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        last.append(h)
    hidden = op.Concat(*last, axis=0) if num_layers > 1 else last[0]
    return (op.Transpose(x, perm=[1, 0, 2]) if batch_first else x), hidden


#: For ``torch.onnx.export(custom_translation_table=…)``.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.normfold.lstm.default: aten_lstm,
    torch.ops.normfold.gru.default: aten_gru,
    torch.ops.normfold.rnn.default: _translated,
}


class WholeRecurrence(TorchFunctionMode):
    """While active, LSTM, GRU and RNN layers on plain (not packed) sequences are captured as one operator each."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace these calls; pass on every other call."""
        # A packed sequence has its batch sizes as second argument.
        if not kwargs and len(args) == 9 and isinstance(args[3], bool):
            if func is torch.lstm:
                if args[1][0].shape[-1] != args[1][1].shape[-1]:
                    raise CaptureError(
                        "ONNX's LSTM has no projection, so an nn.LSTM with proj_size cannot be exported: leave it out"
                    )
                return torch.ops.normfold.lstm(*args)
            if func is torch.gru:
                return torch.ops.normfold.gru(*args)
            if func in (torch.rnn_relu, torch.rnn_tanh):
                return torch.ops.normfold.rnn(*args[:2], func is torch.rnn_relu, *args[2:])
        return func(*args, **(kwargs or {}))


def _output(input: Tensor, hidden: int, bidirectional: bool) -> tuple[Any, ...]:
    """Return the shape of the layer's output: (steps, batch, features) or (batch, steps, features)."""
    return (*input.shape[:-1], hidden * (2 if bidirectional else 1))
