"""Take away the lengths that onnx's inference gave wrong, and those that followed from them.

Files may state such lengths, too: whoever ran onnx.shape_inference on a file has left them there. The right ones are
not written in their place: onnx's checker, which infers again, would refuse the file.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from normfold.export.graphs.bodies import bodies_of
from normfold.export.graphs.lengths import Dim, dims_of, real_lengths

__all__ = ["correct_shapes"]

#: Inference of one node gets the numbers of constants up to this size: shapes, axes, scales.
_READ_BYTES = 1000


def correct_shapes(model: ir.Model) -> None:
    """Make every wrong length unknown, in place, and every length that was inferred from it."""
    _correct(model.graph, model, set())


def _correct(graph: ir.Graph, model: ir.Model, changed: set[ir.Value]) -> bool:
    """Correct one graph, its nodes in order; ``changed`` holds the values whose shapes, or numbers, are other ones.

    Return whether anything in it has changed.
    """
    before = len(changed)
    for node in graph:
        bodies = [g for a in node.attributes.values() for g in bodies_of(a)]
        follows = any(value in changed for value in node.inputs if value is not None)
        for body in bodies:
            follows |= _correct(body, model, changed) or any(value in changed for value in body.outputs)
            if follows and not changed.issuperset(body.inputs):
                # a loop passes its inputs, and what its body gives, on to its body
                for value in body.inputs:
                    _forget(value)
                changed.update(body.inputs)
                _correct(body, model, changed)
        if follows:
            _infer_again(node, model)
            changed.update(node.outputs)
        if not node.outputs:
            continue
        found, real = dims_of(node.outputs[0]), real_lengths(node)
        if found is not None and real is not None and real != found:
            right = [d if d == r else None for d, r in zip(found, real, strict=True)]
            for value in node.outputs:
                if dims_of(value) is not None:  # the second output of a MaxPool is as long as the first
                    value.shape = ir.Shape(right)
            changed.update(node.outputs)
    return len(changed) > before


def _infer_again(node: ir.Node, model: ir.Model) -> None:
    """Infer the shapes of a node's outputs from those of its inputs alone; unknown lengths where that fails."""
    try:
        inferred = _inferred(node, model)
    except Exception:  # no schema, a subgraph, or what inference raises
        inferred = {}
    for value in node.outputs:
        kind = inferred.get(value.name or "")
        old = dims_of(value)
        if kind is None or not kind.tensor_type.HasField("shape"):
            _forget(value)
            if node.op_type == "Squeeze" and len(node.inputs) < 2 and "axes" not in node.attributes:
                value.shape = None  # which axes go depends on the lengths
            continue
        new: list[Dim] = [
            d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.tensor_type.shape.dim
        ]
        if value.is_graph_output() and old is not None and len(old) == len(new):
            new = [o if n is None and isinstance(o, str) else n for n, o in zip(new, old, strict=True)]
        value.shape = ir.Shape(new)


def _inferred(node: ir.Node, model: ir.Model) -> dict[str, onnx.TypeProto]:
    given = [v for v in node.inputs if v is not None and v.type is not None]
    held = {v.name or "": ir.convenience.get_const_tensor(v) for v in given}
    imports = [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]
    return onnx.shape_inference.infer_node_outputs(
        onnx.defs.get_schema(node.op_type, model.opset_imports[node.domain], node.domain),
        ir.serde.serialize_node(node),
        {v.name or "": ir.serde.serialize_value(v).type for v in given},
        {n: ir.serde.serialize_tensor(t) for n, t in held.items() if t is not None and t.nbytes <= _READ_BYTES},
        opset_imports=imports,
        ir_version=model.ir_version or 10,
    )


def _forget(value: ir.Value) -> None:
    """Leave a value only its rank, and a graph's output the names of its lengths."""
    dims = dims_of(value)
    if dims is not None:
        value.shape = ir.Shape([d if value.is_graph_output() and isinstance(d, str) else None for d in dims])
