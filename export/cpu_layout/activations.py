"""Activations written as, and moved to, what onnxruntime has a fast kernel for."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from normfold.export.graphs.node import NodeView
from normfold.export.graphs.writing import Writing

__all__ = ["after_pool", "before_concat", "gelu"]

ROOT = math.sqrt(2)
#: Nondecreasing functions of one entry that no convolution kernel computes and that leave the blocked layout.
RISING = frozenset({"Elu", "Celu", "Selu", "Softplus", "Softsign"})
#: Functions of one entry that onnxruntime computes inside the kernel of the convolution before them.
FUSED = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid"})


def gelu(node: NodeView, writing: Writing) -> list[ir.Node] | None:
    """x · (½ · (1 + erf(x / √2))) = (x · (1 + erf(x / √2))) · ½, which onnxruntime recognises as a GELU.

    It has one kernel for the whole, which keeps the blocked layout; torch's exporter writes the left side. √2 may be a
    divisor or, as folding leaves it, a factor; it is written as the graph has it. Only the next step reads each step;
    the data is float32, and no constant gives it more axes.
    """
    whole = node.node.outputs[0].shape
    for index in (0, 1):
        x, halved = node.value(index), _only(node.value(1 - index), "Mul")
        raised = _beside(halved, 0.5, "Add", node)
        error = _beside(raised, 1, "Erf", node)
        divisor = None if x is None or error is None else _root(error.inputs[0], x, node)
        if x is None or divisor is None or x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            continue
        if x.shape is None or whole is None or len(x.shape) != len(whole):
            continue
        half, one, root = (writing.shared(np.array(v, np.float64), like=x) for v in (0.5, 1, divisor))
        written = [writing.node("Div", [x, root])]
        for operator, inputs in (("Erf", ()), ("Add", (one,)), ("Mul", (x,)), ("Mul", (half,))):
            written.append(writing.node(operator, [written[-1].outputs[0], *inputs]))
        for step in written:
            step.outputs[0].shape, step.outputs[0].type = x.shape, x.type
        return written
    return None


def _beside(node: ir.Node | None, number: float, operator: str, reading: NodeView) -> ir.Node | None:
    """Return the node of type ``operator`` behind one input of ``node``, if the other input is ``number``."""
    if node is not None:
        for place in (0, 1):
            found = _only(node.inputs[1 - place], operator)
            if found is not None and reading.scalar(node.inputs[place]) == number:
                return found
    return None


def _root(value: ir.Value | None, x: ir.Value, reading: NodeView) -> np.floating | None:
    """Return c where a value is x / c and c is √2 to float32's precision, else None."""
    if (divided := _only(value, "Div")) is not None:
        return _near_root(reading.scalar(divided.inputs[1]), 1) if divided.inputs[0] is x else None
    if (product := _only(value, "Mul")) is not None:
        for place in (0, 1):
            if product.inputs[place] is x:
                return _near_root(reading.scalar(product.inputs[1 - place]), -1)
    return None


def _near_root(found: np.ndarray[tuple[()], np.dtype[np.floating]] | None, power: int) -> np.floating | None:
    """Return a constant to the power of 1 or -1, where that is √2 or a neighbour of it in float32, else None."""
    if found is None or found.dtype not in (np.float32, np.float64) or found == 0:
        return None
    wide = np.float64(found) ** power
    return found.dtype.type(wide) if abs(wide - ROOT) <= 2 * np.spacing(np.float32(ROOT)) else None


def _only(value: ir.Value | None, operator: str) -> ir.Node | None:
    """Return the node of type ``operator`` that gives a value, if that value is read exactly once."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != operator or producer.domain not in ("", "ai.onnx"):
        return None
    return producer if len(value.uses()) == 1 and not value.is_graph_output() else None


def after_pool(node: NodeView, writing: Writing) -> list[ir.Node] | None:
    """maxpool(f(x)) = f(maxpool(x)) for nondecreasing f that only the pool reads: f then sees fewer entries.

    Every window must hold an entry of x: it is not dilated, the padding is smaller than the window, and with ceil_mode
    no window begins behind the last entry.
    """
    read, pooled = node.value(0), node.node.outputs[0]
    activation = read.producer() if read is not None else None
    if activation is None or activation.op_type not in RISING or _only(read, activation.op_type) is None:
        return None
    if any(a.value < 0 for name in ("alpha", "gamma") if (a := activation.attributes.get(name)) is not None):
        return None
    kernel, pads, steps = (node.attribute(name, []) for name in ("kernel_shape", "pads", "strides"))
    if any(d != 1 for d in node.attribute("dilations", [])) or len(node.node.outputs) > 1:
        return None
    if any(p >= k for p, k in zip(pads, [*kernel, *kernel], strict=False)):
        return None
    if node.attribute("ceil_mode", 0) and (any(pads) or any(s > k for s, k in zip(steps, kernel, strict=False))):
        return None
    pool = writing.node("MaxPool", [activation.inputs[0]])
    pool.attributes.update(node.node.attributes)
    pool.outputs[0].shape, pool.outputs[0].type = pooled.shape, pooled.type
    after = writing.node(activation.op_type, [pool.outputs[0]])
    after.attributes.update(activation.attributes)
    return [pool, after]


def before_concat(node: NodeView, writing: Writing) -> list[ir.Node] | None:
    """f(concat(conv(x), conv(x'), …)) = concat(f(conv(x)), f(conv(x')), …), each read by the next operator only.

    Each convolution kernel then computes f itself; before, f was one more pass over the whole output. Folding leaves
    this pattern in an Inception block, whose BatchNorm was between the two.
    """
    joined = _only(node.value(0), "Concat")
    if joined is None or any(_only(value, "Conv") is None for value in joined.inputs):
        return None
    held = node.node.inputs[1:]
    if any(node.held(value) is None for value in held if value is not None):
        return None
    written = []
    for value in joined.inputs:
        assert value is not None
        each = writing.node(node.node.op_type, [value, *held])
        each.attributes.update(node.node.attributes)
        each.outputs[0].shape, each.outputs[0].type = value.shape, value.type
        written.append(each)
    whole = writing.node("Concat", [each.outputs[0] for each in written])
    whole.attributes.update(joined.attributes)
    return [*written, whole]
