"""The bias of a product with a constant, which is an Add behind it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from normfold.export.fold.affine import Array
from normfold.export.fold.net import Op
from normfold.export.graphs.writing import Writing

#: Products with a constant; they have no bias of their own.
PRODUCTS = frozenset({"MatMul", "Einsum"})


def add_behind(graph: Writing, node: ir.Node, bias: ir.Value) -> ir.Value:
    """Add a constant to a node's output by an Add behind it; return the sum, which takes its name and readers."""
    product = node.outputs[0]
    uses = list(product.uses())
    add = ir.node("Add", [product, bias], name=f"{node.name}_bias")
    total = add.outputs[0]
    total.name, product.name = product.name, f"{product.name}_product"
    total.type, total.shape = product.type, product.shape
    add.metadata_props.update(node.metadata_props)
    graph.graph.insert_after(node, add)
    for reader, index in uses:
        reader.replace_input_with(index, total)
    for i, output in enumerate(graph.graph.outputs):
        if output is product:
            graph.graph.outputs[i] = total
    return total


def write_bias_behind(op: Op, graph: Writing, added: Array, stem: str) -> None:
    """Give a product its bias by an Add behind it: the one that is there, or a new one."""
    product, final = op.node.outputs[0], op.outputs[0].value
    bias = graph.constant(added, f"{stem}.bias")
    if final is not product:
        add = final.producer()
        assert add is not None
        product.shape = final.shape
        index = 0 if add.inputs[0] is not product else 1
        add.replace_input_with(index, bias)
    elif np.any(added != 0):
        op.outputs[0].value = add_behind(graph, op.node, bias)
