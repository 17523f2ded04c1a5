from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from normfold.export.graphs.exact import Graph, in_float32, in_float64

HEAD = '<ir_version: 9, opset_import: ["" : 18]> g '
#: A constant of each kind, a Cast, an If, and scalars that are attributes.
GRAPH = """(float[N, 3] x, bool c) => (float[N, 3] y) <float[3] w = {0.1, 2, 3}> {
  k = Constant <value = float {0.3}> ()
  l = Constant <value_float = 0.7> ()
  a = Mul (x, w)  b = LeakyRelu <alpha = 0.01> (a)  i = Cast <to = 7> (b)  f = Cast <to = 1> (i)
  z = If (c) <then_branch = t () => (float[N, 3] p) { p = Add (f, k) },
              else_branch = e () => (float[N, 3] q) { q = Add (b, l) }>
  y = Identity (z) }"""


def read(body: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(HEAD + body))


def test_every_float_becomes_float64_and_comes_back_as_it_was() -> None:
    model = read(GRAPH)
    exact = in_float64(model)
    assert exact is not None
    proto = ir.to_proto(exact)
    onnx.checker.check_model(proto, full_check=True)
    types = {v.dtype for graph in exact.graphs() for node in graph for v in node.outputs if v.dtype is not None}
    assert ir.DataType.FLOAT not in types
    held = exact.graph.initializers["w"].const_value
    assert held is not None
    assert held.numpy().tolist() == np.array([0.1, 2, 3], np.float32).astype(np.float64).tolist()
    back = ir.to_proto(in_float32(exact))
    onnx.checker.check_model(back, full_check=True)
    assert onnx.numpy_helper.to_array(back.graph.initializer[0]).dtype == np.float32
    assert [n.op_type for n in back.graph.node] == [n.op_type for n in ir.to_proto(model).graph.node]
    cast = next(n for n in back.graph.node if n.op_type == "Cast" and n.output[0] == "f")
    assert onnx.helper.get_node_attr_value(cast, "to") == onnx.TensorProto.FLOAT
    assert ir.to_proto(model) == ir.to_proto(read(GRAPH)), "the graph that was given is as it was"
    assert ir.to_proto(exact) == proto, "and so is the exact one, after it was rounded"


@pytest.mark.parametrize(
    "body",
    [
        "(float16[N] x) => (float16[N] y) { y = Relu (x) }",
        "(float[N] x) => (float[N] y) { h = Cast <to = 10> (x)  g = Relu (h)  y = Cast <to = 1> (g) }",
        "(float[N] x) => (double[N] y) { y = Cast <to = 11> (x) }",
        "(float[N] x) => (float[N] y) <float s = {1.0}, uint8 z = {0}> "
        "{ q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z) }",
    ],
)
def test_a_network_that_computes_in_other_types_has_no_exact_graph(body: str) -> None:
    assert in_float64(read(body)) is None


def test_a_scalar_takes_the_value_that_the_file_holds() -> None:
    model = read("(float[N] x) => (float[N] y) { y = LeakyRelu <alpha = 0.5> (x) }")
    node = next(iter(model.graph))
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.1)
    exact = in_float64(model)
    assert exact is not None
    assert next(iter(exact.graph)).attributes["alpha"].as_float() == float(np.float32(0.1))


def test_a_graph_is_a_file_with_its_exact_form_beside_it() -> None:
    exact = in_float64(read("(float[N, 3] x) => (float[N, 3] y) <float[3] w = {1, 2, 3}> { y = Mul (x, w) }"))
    assert exact is not None
    graph = Graph.of(exact, exact=True)
    assert graph.model().graph.initializers["w"].dtype == ir.DataType.DOUBLE
    assert onnx.load_model_from_string(graph.content).graph.initializer[0].data_type == onnx.TensorProto.FLOAT
