"""A hundred operators of PyTorch, each as a function from a drawn generator and a shape to a module.

An operator that does not take a shape raises; then the drawn network goes on without it. None of them jumps: a rounding
of its input never becomes a large difference of its output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: From a generator and the input's shape (its batch and length are those of the trace) to a module.
Make = Callable[[torch.Generator, torch.Size], nn.Module]


class Call(nn.Module):
    """A function with constants of its own as buffers, which follow ``.double()``."""

    def __init__(self, function: Callable[..., Tensor], **constants: Tensor):
        super().__init__()
        self.function = function
        self.names = tuple(constants)
        for name, value in constants.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, name) for name in self.names))


class First(nn.Module):
    """A recurrent or attention layer on [N, C, L], of which only the first result is used."""

    def __init__(self, layer: nn.Module, attention: bool = False):
        super().__init__()
        self.layer, self.attention = layer, attention

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        y = self.layer(x, x, x, need_weights=False) if self.attention else self.layer(x)
        return y[0].transpose(1, 2)


class Table(nn.Module):
    """A function of the input and of a parameter."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], table: Tensor):
        super().__init__()
        self.function, self.table = function, nn.Parameter(table)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.table)


class Decoder(nn.Module):
    """A recurrent layer whose input is a parameter, and whose state is computed."""

    def __init__(self, g: torch.Generator, channels: int, layer: nn.RNNBase):
        super().__init__()
        self.start, self.layer = nn.Parameter(normal(g, 4, 1, channels)), layer

    def forward(self, x: Tensor) -> Tensor:
        state = x.mean(2).unsqueeze(0)
        return self.layer(self.start.expand(-1, x.shape[0], -1), state)[0].permute(1, 2, 0)


class Turned(nn.Module):
    """A layer that wants the channels last."""

    def __init__(self, layer: nn.Module, axis: int = 1):
        super().__init__()
        self.layer, self.axis = layer, axis

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(self.axis, -1)).transpose(self.axis, -1)


class Rows(nn.Module):
    """A layer on [N·L, C], as F.linear and BatchNorm1d of rows take it."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        n, c, length = x.shape
        rows = x.transpose(1, 2).reshape(-1, c)
        return self.layer(rows).reshape(n, length, -1).transpose(1, 2)


class Gate(nn.Module):
    """Squeeze and excitation: a gate for each channel from the mean over the positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.down, self.up = nn.Conv1d(channels, 2, 1), nn.Conv1d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean(2, keepdim=True)))))


class Lifted(nn.Module):
    """A 2-D layer on an input of height 1."""

    def __init__(self, layer: nn.Module, axis: int = 2):
        super().__init__()
        self.layer, self.axis = layer, axis

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unsqueeze(self.axis)).squeeze(self.axis)


def pick(g: torch.Generator, *choices: Any) -> Any:
    return choices[int(torch.randint(len(choices), (), generator=g))]


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g)


GAMMAS = ("positive", "mixed", "zeros", "negative", "tiny", "all zero")


def gammas(g: torch.Generator, channels: int, kind: str) -> Tensor:
    gamma = 0.5 + torch.rand(channels, generator=g)
    if kind in ("mixed", "zeros"):
        gamma *= torch.where(torch.rand(channels, generator=g) < 0.4, -1.0, 1.0)
    if kind == "zeros":
        gamma *= (torch.rand(channels, generator=g) > 0.4).float()
    return gamma * {"negative": -1.0, "tiny": 1e-3, "all zero": 0.0}.get(kind, 1.0)


def norm(g: torch.Generator, channels: int, make: type[nn.Module] = nn.BatchNorm1d) -> nn.Module:
    layer: Any = make(channels)
    layer.weight.data = gammas(g, channels, pick(g, *GAMMAS[:4], *GAMMAS))
    layer.bias.data = 0.5 * normal(g, channels)
    layer.running_mean = 0.5 * normal(g, channels)
    layer.running_var = 0.3 + torch.rand(channels, generator=g)
    return layer


def conv(g: torch.Generator, s: torch.Size) -> nn.Module:
    c, k = s[1], pick(g, 1, 2, 3, 3, 5)
    groups = pick(g, 1, 1, 1, c, 2 if c % 2 == 0 else 1)
    out = c * pick(g, 1, 2) if groups > 1 else pick(g, 2, 3, 4, 6, 8)
    padding = pick(g, 0, 0, k // 2, k // 2, "same")
    mode = pick(g, "zeros", "zeros", "zeros", "reflect", "replicate", "circular")
    stride = 1 if padding == "same" else pick(g, 1, 1, 1, 2)
    dilation, bias = pick(g, 1, 1, 2), pick(g, True, True, False)
    return nn.Conv1d(c, out, k, stride, padding, dilation, groups, bias, mode)


def transposed(g: torch.Generator, s: torch.Size) -> nn.Module:
    groups = pick(g, 1, 1, 2 if s[1] % 2 == 0 else 1)
    k, stride = pick(g, 2, 3, 4), pick(g, 1, 2)
    return nn.ConvTranspose1d(s[1], groups * pick(g, 2, 3), k, stride, pick(g, 0, 1), 0, groups)


def heads(g: torch.Generator, s: torch.Size) -> nn.Module:
    return First(nn.MultiheadAttention(s[1], pick(g, 1, s[1]), batch_first=True), attention=True)


def conv2d(g: torch.Generator, s: torch.Size) -> nn.Module:
    if pick(g, True, False):
        return Lifted(nn.Conv2d(s[1], 4, (1, 3), padding=(0, 1)))
    return Lifted(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), norm(g, 2, nn.BatchNorm2d), nn.Conv2d(2, 1, 1)), axis=1)


def shuffled(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, x.shape[1] // groups)).transpose(1, 2).flatten(1, 2)


def f(function: Callable[[Tensor], Tensor]) -> Make:
    """An operator without numbers of its own."""
    return lambda g, s: Call(function)


def layer(make: Callable[[], nn.Module]) -> Make:
    return lambda g, s: make()


def channels(make: Callable[..., nn.Module], *arguments: Any) -> Make:
    """A layer that is made from the number of channels."""
    return lambda g, s: make(s[1], *arguments)


def by_channel(function: Callable[[Tensor, Tensor], Tensor]) -> Make:
    """An operator with one constant for each channel."""
    return lambda g, s: Call(function, constant=normal(g, s[1], 1))


#: Operators with weights, of which one follows each drawn BatchNorm.
LINEAR: dict[str, Make] = {
    "conv": conv,
    "transposed conv": transposed,
    "conv2d": conv2d,
    "linear over channels": lambda g, s: Turned(nn.Linear(s[1], pick(g, 2, 4, 5))),
    "linear over time": lambda g, s: nn.Linear(s[-1], pick(g, 3, 6, 9)),
    "linear over rows": lambda g, s: Rows(nn.Linear(s[1], pick(g, 3, 4))),
    "linear over all": lambda g, s: nn.Sequential(nn.Flatten(), nn.Linear(s[1:].numel(), 12), nn.Unflatten(1, (4, 3))),
    "matmul left": lambda g, s: Call(lambda x, w: w @ x, w=normal(g, 3, s[1])),
    "matmul right": lambda g, s: Call(lambda x, w: x @ w, w=normal(g, s[-1], 5) / 4),
    "einsum": lambda g, s: Call(lambda x, w: torch.einsum("ncl,cd->ndl", x, w), w=normal(g, s[1], 4) / 2),
    "baddbmm": lambda g, s: Call(
        lambda x, w: torch.baddbmm(x, w.expand(x.shape[0], -1, -1), x), w=normal(g, s[1], s[1])
    ),
    "linear of a transpose": lambda g, s: Call(
        lambda x, w: F.linear(x.transpose(1, 2), w).transpose(1, 2), w=normal(g, 4, s[1]) / 2
    ),
    "lstm": lambda g, s: First(nn.LSTM(s[1], 3, batch_first=True, bidirectional=pick(g, True, False))),
    "gru": lambda g, s: First(nn.GRU(s[1], 3, batch_first=True)),
    "gru decoder": lambda g, s: Decoder(g, s[1], nn.GRU(s[1], s[1])),
    "rnn decoder": lambda g, s: Decoder(g, s[1], nn.RNN(s[1], s[1])),
    "rnn": lambda g, s: First(nn.RNN(s[1], 3, batch_first=True)),
    "multihead attention": heads,
    "weight norm": lambda g, s: nn.utils.parametrizations.weight_norm(nn.Conv1d(s[1], 3, 3, padding=1)),
    "lazy slice of weights": lambda g, s: Call(lambda x, w: F.conv1d(x, w[:, : x.shape[1]]), w=normal(g, 3, 9, 2) / 3),
}

#: Everything else.
OTHERS: dict[str, Make] = {
    "batch norm": lambda g, s: norm(g, s[1]),
    "batch norm of rows": lambda g, s: Rows(norm(g, s[1])),
    "batch norm last": lambda g, s: Turned(norm(g, s[-1])),
    "batch norm twice": lambda g, s: nn.Sequential(norm(g, s[1]), norm(g, s[1])),
    "batch norm 2d": lambda g, s: Lifted(norm(g, s[1], nn.BatchNorm2d)),
    "instance norm": channels(nn.InstanceNorm1d),
    "group norm": lambda g, s: nn.GroupNorm(pick(g, 1, s[1]), s[1]),
    "layer norm": lambda g, s: Turned(nn.LayerNorm(s[1])),
    "layer norm time": lambda g, s: nn.LayerNorm(s[-1]),
    "rms norm": lambda g, s: Turned(nn.RMSNorm(s[1], eps=1e-3)),
    "relu": f(F.relu),
    "relu6": f(F.relu6),
    "leaky relu": f(lambda x: F.leaky_relu(x, 0.1)),
    "prelu": lambda g, s: nn.PReLU(pick(g, 1, s[1])),
    "elu": f(F.elu),
    "selu": f(F.selu),
    "celu": f(lambda x: F.celu(x, 0.7)),
    "gelu": f(F.gelu),
    "gelu tanh": f(lambda x: F.gelu(x, approximate="tanh")),
    "silu": f(F.silu),
    "mish": f(F.mish),
    "hardswish": f(F.hardswish),
    "hardsigmoid": f(F.hardsigmoid),
    "hardtanh": f(lambda x: F.hardtanh(x, -0.7, 1.2)),
    "softplus": f(F.softplus),
    "softsign": f(F.softsign),
    "sigmoid": f(torch.sigmoid),
    "tanh": f(torch.tanh),
    "log sigmoid": f(F.logsigmoid),
    "tanhshrink": f(F.tanhshrink),
    "softshrink": f(lambda x: F.softshrink(x, 0.2)),
    "glu": f(lambda x: F.glu(x, 1)),
    "abs": f(torch.abs),
    "neg": f(torch.neg),
    "square": f(torch.square),
    "pow": f(lambda x: (x.abs() + 0.5) ** 1.5),
    "sqrt": f(lambda x: torch.sqrt(x.abs() + 0.5)),
    "rsqrt": f(lambda x: torch.rsqrt(x.abs() + 0.5)),
    "reciprocal": f(lambda x: 1 / (x.abs() + 0.5)),
    "exp": f(lambda x: torch.exp(x.clamp(max=2))),
    "log": f(lambda x: torch.log(x.abs() + 0.5)),
    "log1p": f(lambda x: torch.log1p(x.abs())),
    "sin": f(torch.sin),
    "erf": f(torch.erf),
    "atan": f(torch.atan),
    "clamp": f(lambda x: x.clamp(-0.5, 1.5)),
    "clamp below": f(lambda x: x.clamp(min=0.1)),
    "maximum": by_channel(torch.maximum),
    "minimum": by_channel(torch.minimum),
    "where": f(lambda x: torch.where(x > 0, 0.5 * x, x)),
    "add": by_channel(lambda x, c: x + c),
    "mul": by_channel(lambda x, c: c * x),
    "sub from": by_channel(lambda x, c: c - x),
    "div": by_channel(lambda x, c: x / (c.abs() + 0.5)),
    "scalar": f(lambda x: 1 - 2 * x / 3),
    "add time": lambda g, s: Call(lambda x, c: x + c, c=normal(g, s[-1])),
    "mul time": lambda g, s: Call(lambda x, c: x * c, c=normal(g, s[-1])),
    "table": lambda g, s: Table(lambda x, t: x + t[:, :, : x.shape[-1]], normal(g, 1, s[1], 256)),
    "turned table": lambda g, s: Table(lambda x, t: x * t.mT[:, :, : x.shape[-1]], normal(g, 1, 256, s[1])),
    "resized table": lambda g, s: Table(lambda x, t: x + F.interpolate(t, size=x.shape[-1]), normal(g, 1, s[1], 5)),
    "positions": f(lambda x: x + torch.arange(x.shape[-1], device=x.device, dtype=x.dtype) / x.shape[-1]),
    "max pool": f(lambda x: F.max_pool1d(x, 2)),
    "max pool padded": f(lambda x: F.max_pool1d(x, 3, 1, 1)),
    "max pool ceil": f(lambda x: F.max_pool1d(x, 3, 2, ceil_mode=True)),
    "max pool dilated": f(lambda x: F.max_pool1d(x, 2, 1, dilation=2)),
    "average pool": f(lambda x: F.avg_pool1d(x, 3, 2)),
    "average pool padded": f(lambda x: F.avg_pool1d(x, 3, 1, 1)),
    "average pool uncounted": f(lambda x: F.avg_pool1d(x, 3, 2, 1, count_include_pad=False)),
    "adaptive average": f(lambda x: F.adaptive_avg_pool1d(x, 1)),
    "adaptive average 4": f(lambda x: F.adaptive_avg_pool1d(x, 4)),
    "adaptive maximum": f(lambda x: F.adaptive_max_pool1d(x, 3)),
    "lp pool": f(lambda x: F.lp_pool1d(x.abs() + 0.1, 2, 2)),
    "mean over time": f(lambda x: x.mean(-1, keepdim=True)),
    "mean over channels": f(lambda x: x.mean(1, keepdim=True)),
    "mean taken off": f(lambda x: x - x.mean(2, keepdim=True)),
    "sum over time": f(lambda x: x.sum(2, keepdim=True)),
    "sum over channels": f(lambda x: x.sum(1, keepdim=True)),
    "max over time": f(lambda x: x.amax(2, keepdim=True)),
    "min over channels": f(lambda x: x.amin(1, keepdim=True)),
    "standard deviation": f(lambda x: torch.sqrt(x.var(2, keepdim=True, unbiased=False) + 0.1)),
    "statistics": f(lambda x: torch.cat([x.mean(2), x.abs().mean(2)], 1).unsqueeze(2)),
    "logsumexp": f(lambda x: torch.logsumexp(x, 1, keepdim=True)),
    "norm": f(lambda x: x / (x.norm(dim=1, keepdim=True) + 0.5)),
    "softmax over channels": f(lambda x: x.softmax(1)),
    "softmax over time": f(lambda x: x.softmax(-1)),
    "log softmax": f(lambda x: x.log_softmax(1)),
    "attention pool": lambda g, s: Call(
        lambda x, w: (x * F.conv1d(x, w).softmax(2)).sum(2, keepdim=True), w=normal(g, 1, s[1], 1)
    ),
    "self attention": lambda g, s: Turned(Call(lambda x: F.scaled_dot_product_attention(x, x, x))),
    "squeeze and excite": channels(Gate),
    "cumsum": f(lambda x: x.cumsum(2) / x.shape[2]),
    "flip": f(lambda x: x.flip(2)),
    "flip channels": f(lambda x: x.flip(1)),
    "roll": f(lambda x: x.roll(1, 2)),
    "pad": f(lambda x: F.pad(x, (2, 1))),
    "pad with a number": f(lambda x: F.pad(x, (1, 0), value=0.5)),
    "pad reflect": f(lambda x: F.pad(x, (1, 2), mode="reflect")),
    "pad replicate": f(lambda x: F.pad(x, (2, 1), mode="replicate")),
    "pad circular": f(lambda x: F.pad(x, (1, 1), mode="circular")),
    "pad channels": f(lambda x: F.pad(x, (0, 0, 1, 1))),
    "crop": f(lambda x: F.pad(x, (-1, -1))),
    "slice": f(lambda x: x[:, :, 1:]),
    "slice in steps": f(lambda x: x[..., ::2]),
    "slice channels": f(lambda x: x[:, 1:]),
    "choose channels": lambda g, s: Call(lambda x, i: x[:, i], i=torch.randperm(s[1], generator=g)),
    "index select": lambda g, s: Call(lambda x, i: x.index_select(2, i), i=torch.tensor([0, 2, 1])),
    "last step": f(lambda x: x[:, :, -1:]),
    "beside its padded copy": f(lambda x: torch.cat([x, F.pad(x, (0, 0, 1, 1))], 1)),
    "beside its rolled copy": f(lambda x: torch.cat([x.roll(1, 1), x], 1)),
    "beside its slice": f(lambda x: torch.cat([x, x[:, 1:]], 1)),
    "even and odd": f(lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1)),
    "halves": f(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "halves product": f(lambda x: x.chunk(2, 1)[0] * torch.sigmoid(x.chunk(2, 1)[1])),
    "split": f(lambda x: torch.cat(x.split([1, x.shape[1] - 1], 1)[::-1], 1)),
    "windows": f(lambda x: x.unfold(2, 3, 2).mean(-1)),
    "channel shuffle": f(lambda x: shuffled(x, 2)),
    "pixel shuffle": f(lambda x: x.unflatten(1, (-1, 2)).transpose(2, 3).flatten(2)),
    "pixel unshuffle": f(lambda x: x.unflatten(2, (-1, 2)).permute(0, 1, 3, 2).flatten(1, 2)),
    "transpose": f(lambda x: x.transpose(1, 2)),
    "rows": f(lambda x: x.flatten(0, 1).unsqueeze(1).unflatten(0, (-1, x.shape[1])).squeeze(2)),
    "stack": f(lambda x: torch.stack([x, 0.5 * x], 1).flatten(1, 2)),
    "repeat": f(lambda x: x.repeat(1, 2, 1)),
    "repeat positions": f(lambda x: x.repeat_interleave(2, 2)),
    "expand": f(lambda x: x[:, :1].expand(-1, 3, -1)),
    "nearest": f(lambda x: F.interpolate(x, scale_factor=2)),
    "interpolate": f(lambda x: F.interpolate(x, scale_factor=2, mode="linear")),
    "interpolate to a size": f(lambda x: F.interpolate(x, size=7, mode="linear", align_corners=True)),
    "dropout": layer(lambda: nn.Dropout(0.3)),
    "identity": layer(nn.Identity),
    "float": f(lambda x: x * (x > 0).to(x.dtype)),
    "masked fill": f(lambda x: x.masked_fill(x < 0, 0.0)),
    "tril": f(lambda x: x.tril()),
    "outer": f(lambda x: x * x.mean(1, keepdim=True)),
    "contiguous": f(lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0)),
}

#: Operators of two tensors of one shape.
JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * torch.tanh(b),
    "gated": lambda a, b: torch.tanh(a) * torch.sigmoid(b),
    "larger": torch.maximum,
    "cat": lambda a, b: torch.cat([a, b], 1),
    "cat over time": lambda a, b: torch.cat([a, b], 2),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "a / b": lambda a, b: a / (1 + b.abs()),
}
