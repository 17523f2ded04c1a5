"""Random networks: a list of layers that hypothesis draws, as an ONNX graph and as float64 PyTorch.

The two are written layer by layer from the same description, so that the reference does not depend on the graph that is
folded. A layer names what it reads by a number, counted back from the newest value and taken modulo what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Run = Callable[[list[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """One drawn layer: its kind, what it reads (counted back), and numbers that its kind interprets."""

    kind: str
    reads: int = 0
    also: int = 1
    a: int = 0
    b: int = 0
    c: int = 0
    seed: int = 0


@dataclass
class Value:
    name: str
    channels: int
    length: int


@dataclass
class Builder:
    """The graph so far, and the same as functions of float64 tensors."""

    opset: int
    values: list[Value]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def const(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(np.asarray(array, dtype)), name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"{op}_{len(self.nodes)}", **attributes))
        return name

    def emit(self, name: str, channels: int, length: int, run: Run) -> None:
        self.values.append(Value(name, channels, length))
        self.runs.append(run)

    def pick(self, back: int) -> int:
        return len(self.values) - 1 - back % len(self.values)


def f32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)


def t64(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).double()


GAMMAS = ("positive", "mixed", "zeros", "tiny", "large", "negative")


def gammas(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    g = rng.uniform(0.5, 1.5, n)
    if kind in ("mixed", "zeros"):
        g *= rng.choice([1.0, -1.0], n, p=[0.7, 0.3])
    if kind == "zeros":
        g[rng.random(n) < 0.4] = 0.0
    if kind == "tiny":
        g[rng.random(n) < 0.3] *= 1e-6
    if kind == "large":
        g *= 30.0
    if kind == "negative":
        g = -g
    return f32(g)


def add_layer(b: Builder, layer: Layer) -> None:
    rng = np.random.default_rng(layer.seed)
    i = b.pick(layer.reads)
    x, C, L = b.values[i].name, b.values[i].channels, b.values[i].length

    def weights(*shape: int) -> np.ndarray:
        return f32(rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:]))))

    if layer.kind == "conv":
        k, stride, dilation = 1 + layer.a % 4, 1 + layer.b % 2, 1 + (layer.b // 2) % 2
        left, right = layer.c % 3, (layer.c // 3) % 3
        groups = C if layer.a >= 8 else 1
        out = C * (1 + layer.c % 2) if groups > 1 else 1 + layer.c % 6
        span = dilation * (k - 1) + 1
        if left + right + L < span + 2:
            return
        w, bias = weights(out, C // groups, k), f32(rng.standard_normal(out) * 0.5)
        has_bias = layer.seed % 4 != 0
        ins = [x, b.const(w)] + ([b.const(bias)] if has_bias else [])
        name = b.node("Conv", ins, group=groups, strides=[stride], dilations=[dilation], pads=[left, right])
        tw, tb = t64(w), t64(bias) if has_bias else None
        b.emit(
            name,
            out,
            (L + left + right - span) // stride + 1,
            lambda v: F.conv1d(F.pad(v[i], (left, right)), tw, tb, stride, 0, dilation, groups),
        )
    elif layer.kind == "convt":
        k, stride, pad, out = 1 + layer.a % 4, 1 + layer.b % 3, layer.c % 2, 1 + layer.c % 5
        length = (L - 1) * stride + k - 2 * pad
        if length < 2 or length > 80:
            return
        w, bias = weights(C, out, k), f32(rng.standard_normal(out) * 0.5)
        name = b.node("ConvTranspose", [x, b.const(w), b.const(bias)], strides=[stride], pads=[pad, pad])
        tw, tb = t64(w), t64(bias)
        b.emit(name, out, length, lambda v: F.conv_transpose1d(v[i], tw, tb, stride, pad))
    elif layer.kind == "norm":
        kind = GAMMAS[layer.a % len(GAMMAS)]
        gamma, beta = gammas(kind, C, rng), f32(rng.standard_normal(C) * 0.7)
        if layer.b % 4 == 0:
            beta = np.zeros_like(beta)
        mean, var = f32(rng.standard_normal(C) * 0.5), f32(rng.uniform(0.3, 2.0, C))
        if layer.b % 8 == 0:
            mean = np.zeros_like(mean)  # a scale alone passes where a shift does not
        s64 = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + 1e-5)
        if layer.c % 3:
            name = b.node("BatchNormalization", [x, *(b.const(p) for p in (gamma, beta, mean, var))], epsilon=1e-5)
            tg, tt, tm, tv = t64(gamma), t64(beta), t64(mean), t64(var)
            eps = float(np.float32(1e-5))
            b.emit(name, C, L, lambda v: F.batch_norm(v[i], tm, tv, tg, tt, eps=eps))
        else:
            scale, shift = f32(s64).reshape(1, C, 1), beta.reshape(1, C, 1) if layer.b % 2 else beta.reshape(C, 1)
            ts, tt = t64(scale), t64(shift)
            if layer.b % 3 == 0:
                name = b.node("Add", [b.node("Mul", [b.const(scale), x]), b.const(shift)])
                b.emit(name, C, L, lambda v: v[i] * ts + tt)
            elif layer.b % 3 == 1:
                name = b.node("Sub", [x, b.const(shift)])
                b.emit(name, C, L, lambda v: v[i] - tt)
            else:
                nonzero = np.where(scale == 0, 1, scale)
                tn = t64(nonzero)
                name = b.node("Div", [x, b.const(nonzero)])
                b.emit(name, C, L, lambda v: v[i] / tn)
    elif layer.kind == "act":
        which = ("Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Sigmoid", "Tanh", "Relu", "Relu", "Identity")[
            layer.a % 10
        ]
        if which == "PRelu":
            slope = f32(rng.uniform(0.05, 0.5, (C, 1)))
            ts = t64(slope)
            b.emit(b.node("PRelu", [x, b.const(slope)]), C, L, lambda v: torch.where(v[i] >= 0, v[i], v[i] * ts))
        elif which == "Clip":
            b.emit(
                b.node("Clip", [x, b.const(np.float32(0)), b.const(np.float32(6))]), C, L, lambda v: v[i].clamp(0, 6)
            )
        elif which == "LeakyRelu":
            alpha = float(np.float32(0.1))
            b.emit(b.node("LeakyRelu", [x], alpha=0.1), C, L, lambda v: F.leaky_relu(v[i], alpha))
        else:
            fn = {
                "Relu": torch.relu,
                "Elu": F.elu,
                "Sigmoid": torch.sigmoid,
                "Tanh": torch.tanh,
                "Identity": lambda u: u,
            }[which]
            b.emit(b.node(which, [x]), C, L, lambda v: fn(v[i]))
    elif layer.kind == "pool":
        k, stride, pad = 2 + layer.a % 2, 1 + layer.b % 2, layer.c % 2
        if L + 2 * pad < k + 2 or 2 * pad > k:
            return
        length = (L + 2 * pad - k) // stride + 1
        attributes = {"kernel_shape": [k], "strides": [stride], "pads": [pad, pad]}
        if layer.a % 4 < 2:
            b.emit(b.node("MaxPool", [x], **attributes), C, length, lambda v: F.max_pool1d(v[i], k, stride, pad))
        else:
            counted = bool(layer.c % 4 < 2)
            name = b.node("AveragePool", [x], count_include_pad=int(counted), **attributes)
            b.emit(name, C, length, lambda v: F.avg_pool1d(v[i], k, stride, pad, count_include_pad=counted))
    elif layer.kind in ("add", "gate", "sub"):
        same = [j for j, v in enumerate(b.values) if (v.channels, v.length) == (C, L)]
        j = same[layer.also % len(same)]
        other = b.values[j].name
        if layer.kind == "gate":
            b.emit(b.node("Mul", [x, b.node("Sigmoid", [other])]), C, L, lambda v: v[i] * torch.sigmoid(v[j]))
        elif layer.kind == "add":
            b.emit(b.node("Add", [x, other]), C, L, lambda v: v[i] + v[j])
        else:
            b.emit(b.node("Sub", [other, x]), C, L, lambda v: v[j] - v[i])
    elif layer.kind == "concat":
        same = [j for j, v in enumerate(b.values) if v.length == L and v.channels + C <= 12]
        if not same:
            return
        j = same[layer.also % len(same)]
        first, second = (i, j) if layer.a % 3 else (j, i)
        name = b.node("Concat", [b.values[first].name, b.values[second].name], axis=1)
        b.emit(name, C + b.values[j].channels, L, lambda v: torch.cat([v[first], v[second]], 1))
    elif layer.kind == "itself":
        other, make = _changed(b, layer, i)
        if C + other.channels <= 12:
            name = b.node("Concat", [x, other.name] if layer.b % 3 else [other.name, x], axis=1)
            order = 1 if layer.b % 3 else -1
            b.emit(name, C + other.channels, L, lambda v: torch.cat([v[i], make(v[i])][::order], 1))
    elif layer.kind == "widen":
        ends = (1 + layer.a % 2, layer.b % 2, layer.c % 2, layer.c // 2 % 2)  # before and behind channels, positions
        if C + ends[0] + ends[1] <= 8:
            name = b.node("Pad", [x, b.const([0, ends[0], ends[2], 0, ends[1], ends[3]], np.int64)])
            sizes = (C + ends[0] + ends[1], L + ends[2] + ends[3])
            b.emit(name, *sizes, lambda v: F.pad(v[i], (*ends[2:], *ends[:2])))
    elif layer.kind == "table":
        table = weights(1, C, LONGEST) * np.float32(10)
        name, tt = _cut(b, layer, table, x), t64(table)
        if layer.b % 3 == 0:
            b.emit(b.node("Add", [x, name]), C, L, lambda v: v[i] + tt[:, :, : v[i].shape[2]])
        elif layer.b % 3 == 1:
            b.emit(b.node("Sub", [name, x]), C, L, lambda v: tt[:, :, : v[i].shape[2]] - v[i])
        else:
            b.emit(b.node("Mul", [x, name]), C, L, lambda v: v[i] * tt[:, :, : v[i].shape[2]])
    elif layer.kind == "recurrent":
        _add_recurrent(b, layer, i, weights)
    elif layer.kind == "places":
        if L < 2:
            return
        # The table keeps entries of one window apart; only those that the ReLU makes equal are equal.
        table, w, bias = weights(1, C, LONGEST) * np.float32(10), weights(C, C, 1), f32(rng.standard_normal(C) * 0.5)
        gamma, beta = f32(rng.uniform(0.5, 1.5, C)), f32(rng.standard_normal(C))
        apart = b.node("Add", [x, _cut(b, layer, table, x)])
        r = b.node("Relu", [b.node("Conv", [apart, b.const(w), b.const(bias)])])
        ones = b.const(np.ones(C))
        n = b.node("BatchNormalization", [r, b.const(gamma), b.const(beta), b.const(np.zeros(C)), ones], epsilon=0.0)
        half, places = f"v{len(b.nodes)}_0", f"v{len(b.nodes)}_1"
        window = {"kernel_shape": [2], "strides": [2]}
        b.nodes.append(helper.make_node("MaxPool", [n], [half, places], name=f"MaxPool_{len(b.nodes)}", **window))
        tt, tw, tb = t64(table), t64(w), t64(bias)
        tg, ts = t64(gamma).reshape(1, C, 1), t64(beta).reshape(1, C, 1)

        def unpooled(v: list[torch.Tensor]) -> torch.Tensor:
            whole = torch.relu(F.conv1d(v[i] + tt[:, :, : v[i].shape[2]], tw, tb)) * tg + ts
            pooled = F.max_pool1d(whole, 2, return_indices=True)
            return F.max_unpool1d(*pooled, 2, output_size=whole.shape[2:])

        whole = b.node("MaxUnpool", [half, places, b.node("Shape", [x])], **window)
        b.emit(b.node("Reshape", [whole, b.const([0, C, -1], np.int64)]), C, L, unpooled)  # ONNX infers no rank before
    elif layer.kind == "split":
        if C < 2:
            return
        first = 1 + layer.a % (C - 1)
        sizes = b.const([first, C - first], np.int64)
        names = [f"v{len(b.nodes)}_0", f"v{len(b.nodes)}_1"]
        b.nodes.append(helper.make_node("Split", [x, sizes], names, name=f"Split_{len(b.nodes)}", axis=1))
        b.emit(names[0], first, L, lambda v: v[i][:, :first])
        b.emit(names[1], C - first, L, lambda v: v[i][:, first:])
    elif layer.kind == "slice":
        if L < 6:
            return
        ends = [b.const([n], np.int64) for n in (1, L + 1000, 2)]
        b.emit(b.node("Slice", [x, *ends]), C, L - 1, lambda v: v[i][:, :, 1:])
    elif layer.kind == "pad":
        mode = ("reflect", "edge", "constant", "circular")[layer.a % 4]
        pads = b.const([0, 0, 1 + layer.b % 2, 0, 0, 1], np.int64)
        ahead = 1 + layer.b % 2
        if L < 4:
            return
        if mode == "circular":
            first, last, end, zero, axis = (b.const([n], np.int64) for n in (1, -ahead, 2**31 - 1, 0, 2))
            parts = [b.node("Slice", [x, last, end, axis]), x, b.node("Slice", [x, zero, first, axis])]
            whole = b.node("Concat", parts, axis=2)
            b.emit(whole, C, L + 1 + ahead, lambda v: F.pad(v[i], (ahead, 1), mode="circular"))
            return
        torch_mode = {"reflect": "reflect", "edge": "replicate", "constant": "constant"}[mode]
        b.emit(
            b.node("Pad", [x, pads], mode=mode), C, L + 1 + ahead, lambda v: F.pad(v[i], (ahead, 1), mode=torch_mode)
        )
    elif layer.kind == "linear":
        out = 1 + layer.c % 5
        w, bias = weights(C, out), f32(rng.standard_normal(out) * 0.5)
        turned = b.node("Transpose", [x], perm=[0, 2, 1])
        if layer.b % 3 == 0:
            product = b.node("Einsum", [b.const(w.T), turned], equation="oc,...c->...o")
        else:
            product = b.node("MatMul", [turned, b.const(w)])
        summed = b.node("Add", [product, b.const(bias)]) if layer.a % 2 else product
        tw, tb = t64(w), t64(bias) if layer.a % 2 else torch.zeros(out, dtype=torch.float64)
        b.emit(
            b.node("Transpose", [summed], perm=[0, 2, 1]),
            out,
            L,
            lambda v: (v[i].transpose(1, 2) @ tw + tb).transpose(1, 2),
        )
    elif layer.kind == "time":
        taken = _first_positions(b, x, L)
        if taken is None:
            return
        w = weights(TAKEN, 1 + layer.c % 4)
        tw = t64(w)
        b.emit(b.node("MatMul", [taken, b.const(w)]), C, w.shape[1], lambda v: v[i][:, :, :TAKEN] @ tw)
    elif layer.kind == "windows":
        if L < TAKEN:
            return
        windows = np.array([[0, 1, 2], [2, 3, 4]])
        gathered = b.node("Gather", [x, b.const(windows, np.int64)], axis=2)
        name = b.node("Reshape", [gathered, b.const([0, C, windows.size], np.int64)])
        b.emit(name, C, windows.size, lambda v: v[i][:, :, windows.reshape(-1)])
    elif layer.kind == "total":
        taken = _first_positions(b, x, L) if layer.a % 2 else x
        if taken is None:
            return
        end = TAKEN if layer.a % 2 else None
        name = b.node("ReduceSum", [taken, b.const([2], np.int64)])
        b.emit(name, C, 1, lambda v: v[i][:, :, :end].sum(2, keepdim=True))
    elif layer.kind == "attend":
        w = weights(1, C, 1)
        share = b.node("Softmax", [b.node("Conv", [x, b.const(w)])], axis=2)
        tw = t64(w)
        b.emit(
            b.node("ReduceSum", [b.node("Mul", [x, share]), b.const([2], np.int64)]),
            C,
            1,
            lambda v: (v[i] * F.conv1d(v[i], tw).softmax(2)).sum(2, keepdim=True),
        )
    elif layer.kind == "shuffle":
        groups = 2 if C % 2 == 0 else 1
        apart = b.node("Reshape", [x, b.const([0, groups, C // groups, -1], np.int64)])
        turned = b.node("Transpose", [apart], perm=[0, 2, 1, 3])
        name = b.node("Reshape", [turned, b.const([0, C, -1], np.int64)])
        b.emit(name, C, L, lambda v: v[i].unflatten(1, (groups, C // groups)).transpose(1, 2).flatten(1, 2))
    elif layer.kind == "negative":
        b.emit(b.node("Neg", [x]), C, L, lambda v: -v[i])
    elif layer.kind == "least":
        b.emit(b.node("ReduceMin", [x], axes=[2]), C, 1, lambda v: v[i].amin(2, keepdim=True))
    elif layer.kind == "tile":
        if L > 30:
            return
        b.emit(b.node("Tile", [x, b.const([1, 1, 2], np.int64)]), C, 2 * L, lambda v: v[i].repeat(1, 1, 2))
    elif layer.kind == "resize":
        if L > 30:
            return
        scales = b.const([1, 1, 2], np.float32)
        if layer.a % 2:
            sizes = b.node("Cast", [b.node("Shape", [x])], to=TensorProto.FLOAT)
            scales = b.node("Div", [b.node("Mul", [sizes, scales]), sizes])
        name = b.node(
            "Resize", [x, "", scales], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )
        b.emit(name, C, 2 * L, lambda v: v[i].repeat_interleave(2, dim=2))


#: How many of the first positions the layers read that need a fixed length.
TAKEN = 5


def _first_positions(b: Builder, x: str, length: int) -> str | None:
    """Return the first TAKEN positions of a value, or None where it has fewer."""
    if length < TAKEN:
        return None
    return b.node("Slice", [x, *(b.const([n], np.int64) for n in (0, TAKEN, 2))])


#: The length of a table of positions; a network in which a value is longer does not run, and is drawn anew.
LONGEST = 96


def _cut(b: Builder, layer: Layer, table: np.ndarray, x: str) -> str:
    """Return a table (1, C, LONGEST) that is cut to the length of x, and is held in one of three ways."""
    if layer.a % 3 == 0:
        held = b.const(table)
    elif layer.a % 3 == 1:
        held = b.node("Transpose", [b.const(table.transpose(0, 2, 1))], perm=[0, 2, 1])
    else:
        held = b.node("Constant", [], value=numpy_helper.from_array(table))
    length = b.node("Slice", [b.node("Shape", [x]), b.const([2], np.int64), b.const([3], np.int64)])
    return b.node("Slice", [held, b.const([0], np.int64), length, b.const([2], np.int64)])


def _changed(b: Builder, layer: Layer, i: int) -> tuple[Value, Callable[[torch.Tensor], torch.Tensor]]:
    """Return a value with other channels of value i: among zeros, some of them, or all in another order."""
    x, n = b.values[i], b.values[i].channels
    if layer.a % 3 == 0:
        before, behind = layer.c % 2, 1 + layer.c // 2 % 2
        name = b.node("Pad", [x.name, b.const([0, before, 0, 0, behind, 0], np.int64)])
        return Value(name, n + before + behind, x.length), lambda u: F.pad(u, (0, 0, before, behind))
    picked = np.roll(np.arange(n), 1 + layer.c % 3) if layer.a % 3 == 1 else np.arange(n)[layer.c % n :]
    name = b.node("Gather", [x.name, b.const(picked, np.int64)], axis=1)
    return Value(name, len(picked), x.length), lambda u: u[:, picked]


def _add_recurrent(b: Builder, layer: Layer, i: int, weights: Callable[..., np.ndarray]) -> None:
    """Add an RNN: with a constant input and a computed state, with both computed, or with one tensor as both.

    Its mean over the steps is added to another value, so that nothing but the RNN need read the one that it reads.
    """
    x, n = b.values[i].name, b.values[i].channels
    same = [j for j, value in enumerate(b.values) if value.channels == n]
    j = same[layer.also % len(same)]
    w, r, start = weights(n, n), weights(n, n), weights(4, 1, n) * np.float32(2)
    tw, tr, ts = t64(w), t64(r), t64(start)
    mode = layer.a % 3
    if mode == 0:  # a constant input has a fixed number of rows, so the state has one
        state = b.node("Transpose", [b.node("ReduceMean", [x], axes=[0, 2])], perm=[0, 2, 1])
    else:
        mean = b.node("ReduceMean", [x], axes=[2], keepdims=0)
        state = b.node("Unsqueeze", [mean, b.const([0], np.int64)])
    given = (b.const(start), b.node("Transpose", [x], perm=[2, 0, 1]), state)[mode]
    whole = b.node("RNN", [given, b.const(w[None]), b.const(r[None]), "", "", state], hidden_size=n)
    turned = b.node("Transpose", [b.node("Squeeze", [whole, b.const([1], np.int64)])], perm=[1, 2, 0])

    def run(v: list[torch.Tensor]) -> torch.Tensor:
        u = v[i]
        h = u.mean(2) if mode else u.mean((0, 2))[None]
        steps = (ts, u.permute(2, 0, 1), h[None])[mode]
        outputs = []
        for step in steps:
            h = torch.tanh(step @ tw.T + h @ tr.T)
            outputs.append(h)
        return v[j] + torch.stack(outputs, 2).mean(2, keepdim=True)

    b.emit(b.node("Add", [b.values[j].name, b.node("ReduceMean", [turned], axes=[2])]), n, b.values[j].length, run)


@dataclass(frozen=True)
class Network:
    """A drawn network: the model, and the float64 outputs it should have."""

    model: onnx.ModelProto
    runs: tuple[Run, ...]
    outputs: tuple[int, ...]
    channels: int

    def reference(self, x: np.ndarray) -> list[np.ndarray]:
        values = [torch.from_numpy(x).double()]
        for run in self.runs:
            values.append(run(values))
        return [values[k].numpy() for k in self.outputs]


def build(
    layers: list[Layer], channels: int, length: int, dynamic: bool, extra_output: int | None, opset: int = 17
) -> Network:
    """Return the network of the layers, with a last convolution so that something reads the last value."""
    b = Builder(opset, [Value("x", channels, length)])
    for layer in layers:
        add_layer(b, layer)
    outputs = [len(b.values) - 1]
    if extra_output is not None:
        k = b.pick(extra_output)
        if k and k not in outputs:
            outputs.append(k)
    free = "L" if dynamic else length
    graph = helper.make_graph(
        b.nodes,
        "drawn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, free])],
        [helper.make_tensor_value_info(b.values[k].name, TensorProto.FLOAT, None) for k in outputs],
        b.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return Network(model, tuple(b.runs), tuple(outputs), channels)


#: Layers whose operands are constants of nodes, states, places, or other channels of the same tensor.
OPERANDS = ("itself", "widen", "table", "recurrent", "places")


def layers(often: Sequence[str] = ()) -> st.SearchStrategy[Layer]:
    """Return the strategy of one layer; convolutions, norms, activations and those of ``often`` are the most likely."""
    kinds = ["conv"] * 5 + ["norm"] * 6 + ["act"] * 5 + ["pool"] * 2 + ["add"] * 3 + ["concat"] * 2
    kinds += [
        "convt",
        "gate",
        "sub",
        "split",
        "slice",
        "pad",
        "linear",
        "resize",
        "time",
        "shuffle",
        "windows",
        "total",
        "attend",
        "negative",
        "least",
        "tile",
        *OPERANDS,
    ]
    kinds += 4 * [*often]
    small = st.integers(0, 11)
    reads = st.sampled_from([0, 0, 0, 0, 0, 1, 1, 2, 3])
    return st.builds(Layer, st.sampled_from(kinds), reads, small, small, small, small, st.integers(0, 2**16))


def networks(often: Sequence[str] = ()) -> st.SearchStrategy[tuple[list[Layer], Network]]:
    """Return the strategy of whole networks, with the layers for the reader of a failure."""

    def whole(
        drawn: list[Layer], channels: int, length: int, dynamic: bool, extra: int | None
    ) -> tuple[list[Layer], Network]:
        return drawn, build([*drawn, Layer("conv", a=2, c=4, seed=1)], channels, length, dynamic, extra)

    return st.builds(
        whole,
        st.lists(layers(often), min_size=2, max_size=14),
        st.integers(1, 6),
        st.integers(9, 24),
        st.booleans(),
        st.one_of(st.none(), st.none(), st.integers(0, 8)),
    )
