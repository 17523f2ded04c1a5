"""Activations in the form, and at the place, that onnxruntime has a fast kernel for."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from normfold.export.graphs.node import NodeView
from normfold.export.graphs.writing import Writing

__all__ = ["after_pool", "before_concat", "gelu"]

ROOT = np.float32(math.sqrt(2))
#: Nondecreasing functions of one entry that no convolution takes in and that leave the blocked layout.
RISING = frozenset({"Elu", "Celu", "Selu", "Softplus", "Softsign"})
#: Functions of one entry that onnxruntime computes within the convolution before them.
FUSED = frozenset({"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid"})


def gelu(node: NodeView, writing: Writing) -> list[ir.Node] | None:
    """x · (½ · (1 + erf(x / √2))) = (x · (1 + erf(x / √2))) · ½, in which onnxruntime knows a GELU.

    It has one kernel for the whole, which keeps the blocked layout; torch's exporter writes the first form. √2 may be
    a divisor or, as folding leaves it, a factor. Each step is read by the next alone; the data is float32, and no
    constant gives it more axes.
    """
    whole = node.node.outputs[0].shape
    for index in (0, 1):
        x, halved = node.value(index), _only(node.value(1 - index), "Mul")
        raised = _beside(halved, 0.5, "Add", node)
        error = _beside(raised, 1, "Erf", node)
        if x is None or error is None or not _over_root(error.inputs[0], x, node):
            continue
        if x.shape is None or whole is None or len(x.shape) != len(whole):
            continue
        half, one, root = (writing.shared(np.array(v, np.float32)) for v in (0.5, 1, ROOT))
        written = [writing.node("Div", [x, root])]
        for operator, inputs in (("Erf", ()), ("Add", (one,)), ("Mul", (x,)), ("Mul", (half,))):
            written.append(writing.node(operator, [written[-1].outputs[0], *inputs]))
        for step in written:
            step.outputs[0].shape, step.outputs[0].type = x.shape, x.type
        return written
    return None


def _beside(node: ir.Node | None, number: float, operator: str, reading: NodeView) -> ir.Node | None:
    """The node of one kind that gives one input of ``node``, whose other is ``number``."""
    if node is not None:
        for place in (0, 1):
            found = _only(node.inputs[1 - place], operator)
            if found is not None and reading.scalar(node.inputs[place]) == number:
                return found
    return None


def _over_root(value: ir.Value | None, x: ir.Value, reading: NodeView) -> bool:
    """Whether a value is x / √2, and its constant float32."""
    if (divided := _only(value, "Div")) is not None:
        return divided.inputs[0] is x and _is(reading.scalar(divided.inputs[1]), ROOT)
    product = _only(value, "Mul")
    return product is not None and any(
        product.inputs[place] is x and _is(reading.scalar(product.inputs[1 - place]), 1 / ROOT) for place in (0, 1)
    )


def _is(found: np.ndarray[tuple[()], np.dtype[np.float32]] | None, number: np.floating) -> bool:
    """Whether a constant is a number in float32, or the next to it."""
    return found is not None and found.dtype == np.float32 and abs(found - number) <= np.spacing(np.float32(number))


def _only(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node of one kind that gives a value which nothing else reads."""
    producer = value.producer() if value is not None else None
    if value is None or producer is None or producer.op_type != operator or producer.domain not in ("", "ai.onnx"):
        return None
    return producer if len(value.uses()) == 1 and not value.is_graph_output() else None


def after_pool(node: NodeView, writing: Writing) -> list[ir.Node] | None:
    """maxpool(f(x)) = f(maxpool(x)) for f that never falls, read by the pool alone: f of fewer entries.

    Every window holds an entry of x: it is not dilated, nothing is padded by as much as the window, and a size that is
    rounded up begins no window behind the last entry.
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
    """f(concat(conv(x), conv(x'), …)) = concat(f(conv(x)), f(conv(x')), …), each read by the next alone.

    Every convolution then takes f in, where it was a pass over all that they give. As folding leaves an Inception
    block, whose BatchNorm stood between the two.
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
