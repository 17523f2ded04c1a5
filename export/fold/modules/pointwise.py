"""Rules for calls with weights, norms, activations and arithmetic: the ONNX operators that compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from torch import fx, nn

from normfold.export.fold.modules.skeleton import Call, Opaque, Skeleton

_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def each(value: Any, count: int) -> tuple[int, ...]:
    """Return one number for each position axis, from an argument that may be one number for all."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * count
    values = values * count if len(values) == 1 else values
    if len(values) != count or not all(isinstance(v, int) for v in values):
        raise Opaque
    return values


def bias_of(c: Call, s: Skeleton) -> ir.Value | None:
    """Return the bias of a call as a constant, or None."""
    return None if c.get("bias") is None else s.constant(s.array(c.get("bias")))


def conv(c: Call, s: Skeleton) -> None:
    """F.conv1d, 2d, 3d: Conv, behind a Pad where the padding mirrors or repeats."""
    weight, dims = s.array(c.get("weight")), s.dims(c.get("input"))
    count = weight.ndim - 2
    if len(dims) != weight.ndim:
        raise Opaque
    stride, dilation = each(c.get("stride", 1), count), each(c.get("dilation", 1), count)
    padding = c.get("padding", 0)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        before = [t // 2 for t in total]
        pads = [*before, *(t - b for t, b in zip(total, before, strict=True))]
    else:
        pads = [*each(0 if padding == "valid" else padding, count)] * 2
    x, mode = s.operand(c.get("input")), c.get("padding_mode", "zeros")
    if mode != "zeros":
        if mode not in _MODES:
            raise Opaque
        if any(pads):
            ends = s.constant(np.array([0, 0, *pads[:count], 0, 0, *pads[count:]], np.int64))
            wider = [
                d + pads[k] + pads[count + k] if isinstance(d, int) else f"{d} padded" for k, d in enumerate(dims[2:])
            ]
            x = s.between("Pad", [x, ends], (*dims[:2], *wider), mode=_MODES[mode])
        pads = [0] * 2 * count
    inputs = [x, s.constant(weight), bias_of(c, s)]
    s.result("Conv", inputs, group=c.get("groups", 1), pads=pads, strides=list(stride), dilations=list(dilation))


def conv_transpose(c: Call, s: Skeleton) -> None:
    """F.conv_transpose1d, 2d, 3d: ConvTranspose."""
    weight = s.array(c.get("weight"))
    count = weight.ndim - 2
    if len(s.dims(c.get("input"))) != weight.ndim or c.get("output_size") is not None:
        raise Opaque
    added = each(c.get("output_padding", 0), count)
    attributes: dict[str, Any] = {"output_padding": list(added)} if any(added) else {}
    s.result(
        "ConvTranspose",
        [s.operand(c.get("input")), s.constant(weight), bias_of(c, s)],
        group=c.get("groups", 1),
        pads=[*each(c.get("padding", 0), count)] * 2,
        strides=list(each(c.get("stride", 1), count)),
        dilations=list(each(c.get("dilation", 1), count)),
        **attributes,
    )


def linear(c: Call, s: Skeleton) -> None:
    """F.linear: Gemm of a matrix, else MatMul and Add."""
    weight, dims = s.array(c.get("weight")), s.dims(c.get("input"))
    if weight.ndim != 2 or len(dims) < 2:
        raise Opaque
    x, bias = s.operand(c.get("input")), bias_of(c, s)
    if len(dims) == 2:
        s.result("Gemm", [x, s.constant(weight), bias], transB=1)
    elif bias is None:
        s.result("MatMul", [x, s.constant(weight.T)])
    else:
        s.result("Add", [s.between("MatMul", [x, s.constant(weight.T)], (*dims[:-1], len(weight))), bias])


def matmul(c: Call, s: Skeleton) -> None:
    """``x @ weight`` with a constant matrix."""
    if len(s.dims(c.get("input"))) < 2:
        raise Opaque
    s.result("MatMul", [s.operand(c.get("input")), s.constant(s.array(c.get("other")))])


def embedding(c: Call, s: Skeleton) -> None:
    """F.embedding: Gather of a table's rows."""
    if c.get("max_norm") is not None:
        raise Opaque
    s.result("Gather", [s.constant(s.array(c.get("weight"))), s.operand(c.get("input"))], axis=0)


def recurrent(c: Call, s: Skeleton) -> None:
    """nn.LSTM, GRU, RNN: a fold changes only the input weights of the first layer."""
    layer = c.layer
    if not isinstance(layer, nn.RNNBase) or len(s.dims(c.get("input"))) != 3:
        raise Opaque
    ends = ["", "_reverse"] if layer.bidirectional else [""]
    weights = [np.stack([s.array(getattr(layer, f"weight_{half}_l0{e}")) for e in ends]) for half in ("ih", "hh")]
    inputs: list[ir.Value | None] = [s.operand(c.get("input")), *(s.constant(w) for w in weights), None, None]
    if layer.bias:
        rows = [[s.array(getattr(layer, f"bias_{half}_l0{e}")) for half in ("ih", "hh")] for e in ends]
        inputs[3] = s.constant(np.stack([np.concatenate(r) for r in rows]))
    states: list[fx.Node] = []
    fx.map_arg(c.get("extra", c.get("hx")), states.append)  # the input may be a state, too
    computed = set(s.computed(c.node))
    inputs += [s.value(n) for n in states if n in computed]
    s.result({"LSTM": "LSTM", "GRU": "GRU"}.get(layer.mode, "RNN"), inputs)


def batch_norm(c: Call, s: Skeleton) -> None:
    """F.batch_norm with running statistics: BatchNormalization."""
    mean, var = c.get("running_mean"), c.get("running_var")
    if c.get("training", False) or mean is None or var is None:
        raise Opaque
    mean, var = s.array(mean), s.array(var)
    gamma = np.ones(len(mean)) if c.get("weight") is None else s.array(c.get("weight"))
    beta = np.zeros(len(mean)) if c.get("bias") is None else s.array(c.get("bias"))
    constants = [s.constant(a) for a in (gamma, beta, mean, var)]
    s.result("BatchNormalization", [s.operand(c.get("input")), *constants], epsilon=float(c.get("eps", 1e-5)))


def relu(c: Call, s: Skeleton) -> None:
    """F.relu."""
    s.result("Relu", [s.operand(c.get("input"))])


def relu6(c: Call, s: Skeleton) -> None:
    """F.relu6."""
    s.result("Clip", [s.operand(c.get("input")), s.constant(0.0), s.constant(6.0)])


def hardtanh(c: Call, s: Skeleton) -> None:
    """F.hardtanh."""
    bounds = [s.constant(s.array(c.get(n, d))) for n, d in (("min_val", -1.0), ("max_val", 1.0))]
    s.result("Clip", [s.operand(c.get("input")), *bounds])


def clamp(c: Call, s: Skeleton) -> None:
    """torch.clamp with numbers."""
    bounds = [c.get("min"), c.get("max")]
    if not all(b is None or isinstance(b, (int, float)) for b in bounds):
        raise Opaque
    s.result("Clip", [s.operand(c.get("input")), *(None if b is None else s.constant(float(b)) for b in bounds)])


def leaky_relu(c: Call, s: Skeleton) -> None:
    """F.leaky_relu."""
    s.result("LeakyRelu", [s.operand(c.get("input"))], alpha=float(c.get("negative_slope", 0.01)))


def prelu(c: Call, s: Skeleton) -> None:
    """F.prelu: one slope, or one for each channel."""
    slope, dims = s.array(c.get("weight")), s.dims(c.get("input"))
    if len(dims) < 2 or slope.size not in (1, dims[1]):
        raise Opaque
    s.result("PRelu", [s.operand(c.get("input")), s.constant(slope.reshape(-1, *(1,) * (len(dims) - 2)))])


def elu(c: Call, s: Skeleton) -> None:
    """F.elu."""
    s.result("Elu", [s.operand(c.get("input"))], alpha=float(c.get("alpha", 1.0)))


def gelu(c: Call, s: Skeleton) -> None:
    """F.gelu, exact or in its tanh form."""
    s.result("Gelu", [s.operand(c.get("input"))], approximate=c.get("approximate", "none"))


def silu(c: Call, s: Skeleton) -> None:
    """F.silu: x * sigmoid(x)."""
    x = s.operand(c.get("input"))
    s.result("Mul", [x, s.between("Sigmoid", [x], s.dims(c.get("input")))])


def softplus(c: Call, s: Skeleton) -> None:
    """F.softplus with its usual sharpness."""
    if c.get("beta", 1) != 1:
        raise Opaque
    s.result("Softplus", [s.operand(c.get("input"))])


def sigmoid(c: Call, s: Skeleton) -> None:
    """torch.sigmoid."""
    s.result("Sigmoid", [s.operand(c.get("input"))])


def tanh(c: Call, s: Skeleton) -> None:
    """torch.tanh."""
    s.result("Tanh", [s.operand(c.get("input"))])


def same(c: Call, s: Skeleton) -> None:
    """Calls that return their input: nn.Identity, dropout in inference, contiguous, to."""
    if c.get("training", False) or s.dims(c.node) != s.dims(c.get("input")):
        raise Opaque
    s.result("Identity", [s.operand(c.get("input"))])


def add(c: Call, s: Skeleton) -> None:
    """``a + b``."""
    _arithmetic("Add", c, s)


def sub(c: Call, s: Skeleton) -> None:
    """``a - b``."""
    _arithmetic("Sub", c, s)


def mul(c: Call, s: Skeleton) -> None:
    """``a * b``."""
    _arithmetic("Mul", c, s)


def div(c: Call, s: Skeleton) -> None:
    """``a / b``."""
    if c.get("rounding_mode") is not None:
        raise Opaque
    _arithmetic("Div", c, s)


def neg(c: Call, s: Skeleton) -> None:
    """``-a``."""
    s.result("Mul", [s.operand(c.get("input")), s.constant(-1.0)])


def _arithmetic(op: str, c: Call, s: Skeleton) -> None:
    if c.get("alpha", 1) != 1:
        raise Opaque
    a, b = c.get("input"), c.get("other")
    if not any(isinstance(t, fx.Node) and t not in s.shapes.constants for t in (a, b)):
        raise Opaque
    s.result(op, [s.operand(a), s.operand(b)])
