"""New nodes and constants get new names, keep the names of the values that they replace, and are rounded once."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir

from normfold.export.graphs.names import Names
from normfold.export.graphs.writing import Writing


def graph(body: str) -> ir.Graph:
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[N, 4] x) => (float[N, 4] y) {{ {body} }}'
    return ir.from_proto(onnx.parser.parse_model(text)).graph


def test_a_fresh_name_is_that_of_no_node_no_value_and_no_earlier_fresh_name() -> None:
    found = graph("a = Relu (x) y = Relu (a)")
    next(iter(found)).name = "n"
    names = Names(found)
    assert [names.fresh(name) for name in ("a", "x", "n", "b", "b", "b")] == ["a_1", "x_1", "n_1", "b", "b_1", "b_2"]


def test_names_inside_a_branch_are_in_use_too() -> None:
    branch = "{0} () => (float[N, 4] {0}_y) {{ {0}_y = Relu (x) }}"
    inner = f"then_branch = {branch.format('t')}, else_branch = {branch.format('e')}"
    found = graph(f"c = Constant <value = bool {{1}}> () y = If (c) <{inner}>")
    assert Names(found).fresh("t_y") == "t_y_1"


def test_equal_constants_are_shared_and_a_constant_of_its_own_is_rounded_to_the_given_type() -> None:
    found = graph("y = Relu (x)")
    writing = Writing(found, 18, suffix="new", dtype=np.dtype(np.float32))
    first, second = (writing.shared(np.array([2], np.int64)) for _ in range(2))
    assert first is second
    assert first.name == "axes_new"
    alone = writing.constant(np.array([1 / 3]), "third")
    assert alone.const_value is not None
    assert alone.const_value.numpy().dtype == np.float32
    assert set(found.initializers) == {"axes_new", "third"}
    assert writing.shared(np.array([[2]], np.int64)) is not first, "of another shape"


def test_nodes_in_the_place_of_another_give_an_output_of_the_graph_under_its_name_and_shape() -> None:
    found = graph("y = Relu (x)")
    old = next(iter(found))
    writing = Writing(found, 18)
    new = writing.node("Sigmoid", [found.inputs[0]])
    writing.exchange(old, [new])
    assert [n.op_type for n in found] == ["Sigmoid"]
    assert found.outputs[0] is new.outputs[0]
    assert (found.outputs[0].name, str(found.outputs[0].shape)) == ("y", "[N,4]")


def test_an_input_that_becomes_an_output_is_copied_for_it_and_keeps_its_name() -> None:
    found = graph("a = Relu (x) b = Relu (a) y = Identity (a)")
    relu = next(iter(found))
    writing = Writing(found, 18, dtype=np.dtype(np.float32))
    x, y = found.inputs[0], found.outputs[0]
    assert writing.replace(relu.outputs[0], x) is x
    assert list(found)[1].inputs[0] is x
    writing.replace(y, x)
    copy = found.outputs[0].producer()
    assert copy is not None
    assert (copy.op_type, found.outputs[0].name, x.name) == ("Identity", "y", "x")
