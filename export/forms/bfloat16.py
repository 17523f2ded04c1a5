"""Rewrite a float32 graph in bfloat16: weights and arithmetic. Casts at inputs and outputs keep float32 for clients.

The ONNX schema of an operator says whether it takes bfloat16. A cast is put before and after an operator that does not,
and before an input that must stay float32 (the scales of a Resize). Convolutions, pools and recurrent layers take
bfloat16 since opset 22.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx import version_converter

from normfold.export.errors import ExportError
from normfold.export.graphs.bodies import bodies_of
from normfold.export.graphs.correcting import correct_shapes
from normfold.export.graphs.names import Names
from normfold.export.graphs.onnx_file import opset_of
from normfold.export.graphs.runtime import Runtime

__all__ = ["OPSET", "missing_kernels", "to_bfloat16"]

#: The first opset in which convolutions and pools may take bfloat16, and the IR version of its ONNX release.
OPSET, IR_VERSION = 22, 10
_BFLOAT16 = "tensor(bfloat16)"


def to_bfloat16(content: bytes) -> bytes:
    """Return the graph in bfloat16. Raises ExportError where opset 22 cannot express it or a datatype is not known."""
    proto = onnx.load_model_from_string(content)
    if opset_of(proto) < OPSET:
        try:
            proto = version_converter.convert_version(proto, OPSET)
        except Exception as error:  # RuntimeError, ConvertError: an operator without an adapter
            raise ExportError(f"bf16 needs opset {OPSET}, which this graph cannot be converted to: {error}") from None
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    passes.InlinePass()(model)
    correct_shapes(model)
    model.ir_version = max(model.ir_version, IR_VERSION)
    _Rewriting(model).run()
    return ir.to_proto(model).SerializeToString(deterministic=True)


def missing_kernels(content: bytes, providers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the operators of a graph that have no kernel for their datatypes on ``providers``; each is tried alone."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content)))
    tried: dict[tuple[object, ...], bool] = {}
    for node in model.graph:
        key = (node.domain, node.op_type, *(v.dtype if v is not None else None for v in node.inputs))
        if key not in tried and not any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            tried[key] = _has_kernel(node, model, providers)
    return tuple(dict.fromkeys(str(key[1]) for key, found in tried.items() if not found))


class _Rewriting:
    """One graph that is rewritten in place."""

    def __init__(self, model: ir.Model):
        self.model = model
        self.nodes = list(model.graph.all_nodes())
        self._names = Names(model.graph)
        #: Weights that some operator takes in float32 only.
        self._exact: dict[ir.Value, ir.Value] = {}
        self.floats = {v for v in self._values() if v.dtype == ir.DataType.FLOAT}

    def run(self) -> None:
        for node in self.nodes:
            self._fit_inputs(node)
            self._fit_outputs(node)
            _retype_attributes(node)
        for value in self.floats:
            if value.const_value is not None and value.is_initializer():
                value.const_value = ir.tensor(_rounded(value.const_value.numpy()), name=value.name)
            value.dtype = ir.DataType.BFLOAT16
        self._cast_edges()

    def _values(self) -> list[ir.Value]:
        graph = self.model.graph
        made = [v for n in self.nodes for v in n.outputs]
        inner = [v for n in self.nodes for a in n.attributes.values() for g in bodies_of(a) for v in g.inputs]
        unknown = next((v for v in made if v.dtype is None and v.name and v.uses()), None)
        if unknown is not None:
            raise ExportError(f"bf16 cannot be written: the datatype of the value '{unknown.name}' is not known")
        return [*graph.inputs, *graph.initializers.values(), *made, *inner]

    def _fit_inputs(self, node: ir.Node) -> None:
        """Give the node float32 where its schema takes no bfloat16: a weight's original, a cast of any other value."""
        for index, value in enumerate(node.inputs):
            if value is None or value not in self.floats or _takes(node, index, self.model):
                continue
            if value.is_initializer() and value.const_value is not None:
                node.replace_input_with(index, self._in_float32(value))
                continue
            cast = _cast(value, ir.DataType.FLOAT, self._names.fresh(f"{value.name}_float32"))
            assert node.graph is not None
            node.graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])

    def _in_float32(self, weight: ir.Value) -> ir.Value:
        if weight not in self._exact:
            exact = ir.Value(name=self._names.fresh(f"{weight.name}_float32"), const_value=weight.const_value)
            exact.dtype, exact.shape = ir.DataType.FLOAT, weight.shape
            self._exact[weight] = self.model.graph.initializers[str(exact.name)] = exact
        return self._exact[weight]

    def _fit_outputs(self, node: ir.Node) -> None:
        """Cast what the node gives in float32 for its readers; an output of the graph stays as it is."""
        for index, value in enumerate(node.outputs):
            if value not in self.floats or _takes(node, index, self.model, output=True):
                continue
            self.floats.discard(value)
            inner = value.is_graph_output() and value not in self.model.graph.outputs  # of a branch or a loop's body
            if not value.uses() and not inner:
                continue
            cast = _cast(value, ir.DataType.BFLOAT16, self._names.fresh(f"{value.name}_bfloat16"))
            assert node.graph is not None
            node.graph.insert_after(node, cast)
            for reader, place in tuple(value.uses()):
                if reader is not cast:
                    reader.replace_input_with(place, cast.outputs[0])
            if inner:
                ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
                cast.replace_input_with(0, value)

    def _cast_edges(self) -> None:
        graph = self.model.graph
        for value in graph.inputs:
            if value in self.floats:
                value.dtype = ir.DataType.FLOAT
                cast = _cast(value, ir.DataType.BFLOAT16, self._names.fresh(f"{value.name}_bfloat16"))
                ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
                cast.replace_input_with(0, value)
                graph.insert_before(graph[0], cast)
        for index, value in enumerate(graph.outputs):
            if value.dtype == ir.DataType.BFLOAT16:
                name, value.name = str(value.name), self._names.fresh(f"{value.name}_inner")
                cast = _cast(value, ir.DataType.FLOAT, name)
                cast.outputs[0].shape = value.shape
                graph.append(cast)
                graph.outputs[index] = cast.outputs[0]


def _cast(value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    output = ir.Value(name=name, type=ir.TensorType(to), shape=value.shape)
    return ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], outputs=[output], name=f"cast_{name}")


def _takes(node: ir.Node, index: int, model: ir.Model, output: bool = False) -> bool:
    """Whether the schema of the node's operator allows bfloat16 at this input or output."""
    version = model.opset_imports.get(node.domain, OPSET)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return False  # an operator that only one runtime knows
    formals = schema.outputs if output else schema.inputs
    formal = formals[min(index, len(formals) - 1)]
    return _BFLOAT16 in formal.types


def _retype_attributes(node: ir.Node) -> None:
    """Change float32 to bfloat16 in attributes: the target of a Cast, the value of a constant."""
    attributes = node.attributes
    for name in ("to", "dtype"):
        if name in attributes and attributes[name].value == int(ir.DataType.FLOAT):
            attributes[name] = ir.AttrInt64(name, int(ir.DataType.BFLOAT16))
    if "value" in attributes and node.op_type in ("Constant", "ConstantOfShape"):
        tensor = attributes["value"].as_tensor()
        if tensor.dtype == ir.DataType.FLOAT:
            attributes["value"] = ir.AttrTensor("value", ir.tensor(_rounded(tensor.numpy())))


def _rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16)


def _has_kernel(node: ir.Node, model: ir.Model, providers: tuple[str, ...]) -> bool:
    """Whether a graph of this node alone loads; only the error "no implementation" counts, other errors do not."""
    inputs = {v: ir.Value(name=f"x{i}", type=v.type, shape=v.shape) for i, v in enumerate(node.inputs) if v is not None}
    outputs = [ir.Value(name=f"y{i}", type=v.type) for i, v in enumerate(node.outputs)]
    alone = ir.Node(
        node.domain,
        node.op_type,
        [None if v is None else inputs[v] for v in node.inputs],
        list(node.attributes.values()),
        outputs=outputs,
    )
    graph = ir.Graph(list(inputs.values()), outputs, nodes=[alone], opset_imports=model.opset_imports, name="probe")
    probe = ir.to_proto(ir.Model(graph, ir_version=model.ir_version)).SerializeToString()
    try:
        Runtime(probe, optimised=False, providers=providers)
    except ExportError as error:
        return "NOT_IMPLEMENTED" not in str(error.__cause__)
    return True
