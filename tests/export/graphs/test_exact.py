from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from tests.export.fold.graphs import graph

from normfold.export.fold import fold
from normfold.export.graphs.constants import Constants
from normfold.export.graphs.exact import Graph, in_float64, unrounded
from normfold.export.graphs.unrounded import Unrounded
from normfold.export.graphs.writing import Writing

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


def test_every_float_becomes_float64_and_the_file_keeps_its_types() -> None:
    model = read(GRAPH)
    kept = unrounded(model)
    assert kept is not None
    written = Graph.of(kept)
    assert written.exact is not None
    file, exact = (onnx.load_model_from_string(content) for content in (written.content, written.exact))
    for proto in (file, exact):
        onnx.checker.check_model(proto, full_check=True)
    wide = ir.from_proto(exact)
    types = {v.dtype for graph in wide.graphs() for node in graph for v in node.outputs if v.dtype is not None}
    assert ir.DataType.FLOAT not in types
    held = wide.graph.initializers["w"].const_value
    assert held is not None
    assert held.numpy().tolist() == np.array([0.1, 2, 3], np.float32).astype(np.float64).tolist()
    assert onnx.numpy_helper.to_array(file.graph.initializer[0]).dtype == np.float32
    for proto, kind in ((file, onnx.TensorProto.FLOAT), (exact, onnx.TensorProto.DOUBLE)):
        assert [n.op_type for n in proto.graph.node] == [n.op_type for n in ir.to_proto(model).graph.node]
        cast = next(n for n in proto.graph.node if n.op_type == "Cast" and n.output[0] == "f")
        assert onnx.helper.get_node_attr_value(cast, "to") == kind
    assert ir.to_proto(model) == ir.to_proto(read(GRAPH)), "the graph that was given is as it was"


@pytest.mark.parametrize("number", ["value_float = 0.5", "value_floats = [0.5, 0.5, 0.5]", "value = float {0.5}"])
def test_a_constant_in_any_writing_becomes_float64(number: str) -> None:
    model = read(f"(float[N, 3] x) => (float[N, 3] y) {{ k = Constant <{number}> () y = Mul (x, k) }}")
    exact = in_float64(model)
    tensor = next(node for node in exact.graph if node.op_type == "Constant").attributes["value"].as_tensor()
    assert tensor.dtype == ir.DataType.DOUBLE
    assert set(tensor.numpy().reshape(-1).tolist()) == {0.5}


@pytest.mark.parametrize(("kind", "number"), [("float", 1), ("float16", 10), ("bfloat16", 16), ("double", 11)])
def test_a_weight_is_read_in_float64_and_written_once_in_its_own_type(kind: str, number: int) -> None:
    model = unrounded(read(f"({kind}[N, 3] x) => ({kind}[N, 3] y) <{kind}[3] w = {{1, 2, 3}}> {{ y = Mul (x, w) }}"))
    assert model is not None
    writing = Writing(model.graph, 18, dtype=ir.DataType(number).numpy())
    third = np.full(3, 1 / 3)
    for value in (writing.constant(third, "v"), writing.shared(third, like=model.graph.initializers["w"])):
        assert value.dtype == number
        model.graph.node(0).replace_input_with(1, value)
        read_back = Constants(model.graph, 18).get(value)
        assert read_back is not None
        assert read_back.dtype == np.float64
        assert (read_back == 1 / 3).all()
    again = Graph.of(Graph.of(model).model())  # a rewrite of a rewrite: still rounded once
    assert again.exact is not None
    (exact,) = (t for t in onnx.load_model_from_string(again.exact).graph.initializer if t.name == value.name)
    (held,) = (t for t in onnx.load_model_from_string(again.content).graph.initializer if t.name == value.name)
    assert (onnx.numpy_helper.to_array(exact) == 1 / 3).all()
    assert held.data_type == number
    assert held.raw_data == third.astype(ir.DataType(number).numpy()).tobytes()


def test_constants_of_an_unrounded_graph_are_computed_in_float64_through_every_cast() -> None:
    body = (
        "(float[N, 3] x) => (float[N, 3] y) <float w = {0.1}, int64 k = {3}> { h = Cast <to = 10> (w)"
        "  i = Cast <to = 10> (k)  l = CastLike (w, i)  p = Div (h, i)  q = Div (l, i)  y = Mul (x, w) }"
    )
    model = unrounded(read(body))
    assert model is not None
    constants, expected = Constants(model.graph, 18), float(np.float32(0.1)) / 3
    for node in model.graph:
        if node.op_type == "Div":
            assert constants.get(node.outputs[0]) == expected
    for node in (plain := read(body)).graph:
        if node.op_type == "Div":
            assert Constants(plain.graph, 18).get(node.outputs[0]) == np.float16(0.1) / np.float16(3)


def test_an_overflow_in_the_narrow_type_is_seen_before_it_is_written() -> None:
    """The graph is read in float64, but a weight of 1e5 has no float16."""
    held = {"w": np.full((3, 3, 1), 2), "g": np.full(3, 6e4), "b": np.zeros(3), "m": np.zeros(3), "v": np.ones(3)}
    text = """(float16[N, 3, L] x) => (float16[N, 3, M] y) {
        c = Conv (x, w)  y = BatchNormalization (c, g, b, m, v) }"""
    model = unrounded(ir.from_proto(graph(text, **{name: array.astype(np.float16) for name, array in held.items()})))
    assert model is not None
    report = fold(model)
    assert report.batchnorms_after == 1
    assert "would overflow float16" in " ".join(report.folds[0].reasons)


@pytest.mark.parametrize(
    "body",
    [
        "(float[N] x) => (float[N] y) <float s = {1.0}, uint8 z = {0}> "
        "{ q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, s, z) }",
        "(float[N] x) => (float[N] y) { h = Cast <to = 17> (x)  y = Cast <to = 1> (h) }",
        "(float[N] x) => (float[N] y) { y = com.microsoft.Gelu (x) }",
    ],
)
def test_a_network_that_would_be_another_in_float64_has_no_exact_graph(body: str) -> None:
    assert unrounded(read(body)) is None


def test_a_scalar_takes_the_value_that_the_file_holds() -> None:
    model = read("(float[N] x) => (float[N] y) { y = LeakyRelu <alpha = 0.5> (x) }")
    node = next(iter(model.graph))
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.1)
    kept = unrounded(model)
    assert kept is not None
    assert next(iter(kept.graph)).attributes["alpha"].as_float() == float(np.float32(0.1))


def test_a_graph_is_a_file_with_its_exact_form_beside_it() -> None:
    kept = unrounded(read("(float[N, 3] x) => (float[N, 3] y) <float[3] w = {1, 2, 3}> { y = Mul (x, w) }"))
    assert kept is not None
    assert in_float64(kept).graph.initializers["w"].dtype == ir.DataType.DOUBLE
    both = Graph.of(kept)
    assert isinstance(both.model().graph.initializers["w"].const_value, Unrounded)
    assert onnx.load_model_from_string(both.content).graph.initializer[0].data_type == onnx.TensorProto.FLOAT
    plain = Graph.of(read("(float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }"))
    assert plain.exact is None
    assert plain.model().graph.node(0).op_type == "Relu"
