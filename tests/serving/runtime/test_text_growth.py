"""How long the strings may become that a graph makes, read from its nodes."""

from __future__ import annotations

import math

import pytest
from onnx import TensorProto, helper, parser

from normfold.serving.runtime.onnx_file import check
from normfold.serving.runtime.text_growth import TextGrowth

HEAD = '<ir_version: 9, opset_import: ["": 20, "ai.onnx.ml": 3]>'


def growth(text: str, *sent: str) -> TextGrowth | None:
    return check(parser.parse_model(f"{HEAD} g {text}").SerializeToString(), frozenset(sent)).text_growth


@pytest.mark.parametrize(
    "graph",
    [
        "(float[N] x) => (float[N] y) { y = Neg (x) }",
        "(string[N] x) => (string[N] y) { y = Identity (x) }",
        "(string[N,2] x) => (string[N,1] y) <int64[1] i = {1}> { y = Gather <axis = 1> (x, i) }",
        '(string[N] x) => (int64[N] y) { y = ai.onnx.ml.LabelEncoder <keys_strings = ["a"], values_int64s = [1]> (x) }',
        '(int64[N] x) => (string[N] y) { y = ai.onnx.ml.LabelEncoder <keys_int64s = [1], values_strings = ["a"]> (x) }',
    ],
)
def test_ordinary_graphs_make_no_more_than_the_strings_of_the_request(graph):
    assert growth(graph) is None


def test_strings_that_are_joined_with_themselves_double_each_time():
    nodes = " ".join(f"t{i + 1} = StringConcat (t{i}, t{i})" for i in range(10))
    found = growth(f"(string[N] t0) => (string[N] t10) {{ {nodes} }}")
    assert found is not None
    assert found.copies >= 1024
    assert found.times == 0  # their number does not matter
    assert found.bytes(content=1000, longest=1000, elements=0) >= 1024 * 1000


def test_the_strings_of_one_input_are_not_counted_for_each_of_the_others():
    """Many columns that are joined and divided again, as in pipelines of scikit-learn, took 465 times what they do."""
    names = [f"c{i}" for i in range(30)]
    nodes = " ".join(f"p{i} = ai.onnx.ml.ArrayFeatureExtractor (all, k{i})" for i in range(30))
    nodes += " ".join(f' y{i} = ai.onnx.ml.OneHotEncoder <cats_strings = ["a"]> (p{i})' for i in range(30))
    constants = ", ".join(f"int64[1] k{i} = {{{i}}}" for i in range(30))
    inputs = ", ".join(f"string[N,1] {name}" for name in names)
    given = ", ".join(f"float[N,1,1] y{i}" for i in range(30))
    found = growth(f"({inputs}) => ({given}) <{constants}> {{ all = Concat <axis = 1> ({', '.join(names)}) {nodes} }}")
    assert found is not None
    assert found.copies == 31
    assert found.times == 0


@pytest.mark.parametrize("node", ["Expand (x, s)", "Tile (x, s)", "StringConcat (x, z)"])
def test_a_string_may_be_repeated_for_each_element(node):
    found = growth(f"(string[N] x, string[M] z) => (string[K] y) <int64[1] s = {{7}}> {{ y = {node} }}")
    assert found is not None
    assert found.bytes(content=1000, longest=1000, elements=500) >= 500 * 1000
    assert found.bytes(content=3, longest=3, elements=500) == 0  # they are in the objects
    assert found.is_known(numbers_decide=False)
    assert not found.is_known(numbers_decide=True)


def test_strings_that_a_file_repeats_count():
    label = "a label that is longer than the object of a string in memory"
    node = f'ai.onnx.ml.LabelEncoder <keys_int64s = [1], values_strings = ["{label}"]> (x)'
    found = growth(f"(int64[N] x) => (string[N] y) {{ y = {node} }}")
    assert found is not None
    assert found.bytes(content=0, longest=0, elements=10) >= 10 * len(label)


def test_a_default_counts_as_a_constant_unless_requests_may_send_others():
    indices = "(string[N,2] x, int64[1] i = {1}) => (string[N,1] y) { y = Gather <axis = 1> (x, i) }"
    assert growth(indices) is None
    found = growth(indices, "i")
    assert found is not None
    assert math.isinf(found.copies) or found.times  # as many indices as the request has
    label = "a default that is longer than the object of a string in memory"
    text = f'(int64[2] s, string[1] x = {{"{label}"}}) => (string[K] y) {{ y = Expand (x, s) }}'
    for sent, longest in (((), 0), (("x",), 0), (("x",), 1000)):
        found = growth(text, *sent)
        assert found is not None
        assert found.bytes(content=longest, longest=longest, elements=10) >= 10 * max(longest, len(label))


def test_a_node_without_its_inputs_is_left_to_onnxruntime():
    for node in ("Gather (x)", "StringConcat (x)", "StringConcat ()", "Concat <axis = 0> ()"):
        growth(f"(string[N] x) => (string[N] y) {{ y = {node} }}")


SCAN = "Scan <num_scan_inputs = 1, body = b (float[4] r) => (float[4] o) { o = Neg (r) }> (x)"


def test_a_loop_over_numbers_says_nothing_about_strings():
    """The log warned of each network with labels that has a loop, such as one of nearest neighbours."""
    labels = 'i = ArgMax <axis = 1> (z) y = ai.onnx.ml.LabelEncoder <keys_int64s = [0], values_strings = ["a"]> (i)'
    assert growth(f"(float[N,4] x) => (string[N,1] y) {{ z = {SCAN} {labels} }}") is None


@pytest.mark.parametrize(
    "body",
    [
        "{ o = Identity (x) }",
        '{ o = Constant <value_strings = ["a"]> () }',
        '<string[1] s = {"a"}> { o = Identity (s) }',
    ],
)
def test_nobody_knows_what_a_graph_with_strings_inside_a_node_makes(body):
    inner = f"b () => (string[M] o) {body}"
    node = f"If <then_branch = {inner}, else_branch = {inner}> (c)"
    found = growth(f"(string[N] x, bool c) => (string[M] y) {{ y = {node} }}")
    assert found is not None
    assert math.isinf(found.times)


def test_nobody_knows_what_a_loop_makes():
    body = helper.make_graph(
        [
            helper.make_node("StringConcat", ["t", "t"], ["more"]),
            helper.make_node("Identity", ["going"], ["goes"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", TensorProto.STRING, ["N"]),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.STRING, ["N"]),
        ],
    )
    loop = helper.make_node("Loop", ["trips", "", "x"], ["y"], body=body)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.STRING, ["N"]),
        helper.make_tensor_value_info("trips", TensorProto.INT64, []),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.STRING, ["N"])]
    model = helper.make_model(helper.make_graph([loop], "g", inputs, outputs))
    found = check(model.SerializeToString()).text_growth
    assert found is not None
    assert math.isinf(found.times)
    assert not found.is_known(numbers_decide=False)


@pytest.mark.parametrize(
    ("graph", "tensors"),
    [
        ("(int64[N] x) => (string[N] y) { y = LABEL (x) }", 1),
        ("(int64[N] x) => (string[N,1] y) <int64[1] one = {1}> { t = LABEL (x) y = Unsqueeze (t, one) }", 2),
        ("(int64[N] x) => (string[M] y) <int64[1] k = {2}> { t = LABEL (x) y = Slice (t, k, k) }", 0),
        ("(int64[N] x) => (float[N] y) { t = LABEL (x) y = Cast <to = 1> (t) }", 0),
    ],
)
def test_strings_that_all_reach_the_answer_can_be_counted_by_its_shape(graph, tensors):
    label = 'ai.onnx.ml.LabelEncoder <keys_int64s = [1], values_strings = ["a label longer than 15 bytes"]>'
    found = growth(graph.replace("LABEL", label))
    assert found is not None
    assert found.tensors == tensors


@pytest.mark.parametrize("node", ["OneHotEncoder", "CategoryMapper"])
def test_the_categories_of_a_node_that_gives_numbers_are_no_strings_of_an_answer(node):
    numbers = "" if node == "OneHotEncoder" else ", cats_int64s = [1]"
    kind = "float" if node == "OneHotEncoder" else "int64"
    text = f'y = ai.onnx.ml.{node} <cats_strings = ["a category longer than 15 bytes"]{numbers}> (x)'
    assert growth(f"(string[N,1] x) => ({kind}[N,K] y) {{ {text} }}") is None


def test_only_a_constant_says_how_many_indices_there_are():
    """ConstantOfShape has a value, too, and repeats it."""
    nodes = "s = Shape (f) i = ConstantOfShape <value = int64[1] {0}> (s) y = Gather (x, i)"
    found = growth(f"(string[N] x, float[M] f) => (string[K] y) {{ {nodes} }}")
    assert found is not None
    assert found.times == 1
