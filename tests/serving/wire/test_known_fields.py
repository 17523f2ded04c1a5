"""What protobuf reads of a message without unknown fields is what it reads of the whole one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from normfold.protos import onnx_file
from normfold.serving.errors import UnsafeModel
from normfold.serving.runtime import onnx_file as checks
from normfold.serving.wire import known_fields as module
from normfold.serving.wire.fields import sized
from normfold.serving.wire.known_fields import SMALL_BYTES, known_fields

KIND = onnx_file.ModelProto.DESCRIPTOR
COUNT = SMALL_BYTES  # numbers in a large tensor


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])


def weights(kind: str) -> onnx.TensorProto:
    if kind == "raw":
        return numpy_helper.from_array(np.zeros(COUNT, np.float32), "w")
    if kind == "strings":
        return helper.make_tensor("w", TensorProto.STRING, [COUNT], [b"ab"] * COUNT)
    return helper.make_tensor("w", TensorProto.FLOAT, [COUNT], [0.5] * COUNT)


def model(tensor: onnx.TensorProto, place: str) -> bytes:
    """A model with ``tensor`` at this place."""
    nodes, initializers = [helper.make_node("Identity", ["x"], ["y"])], []
    if place == "initializer":
        initializers = [tensor]
    elif place == "constant":
        nodes.append(helper.make_node("Constant", [], ["z"], value=tensor))
    elif place == "subgraph":
        inner = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [value("y")], [tensor])
        nodes.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    graph = helper.make_graph(nodes, "main", [value("x")], [value("y")], initializers)
    if place == "sparse":
        indices = numpy_helper.from_array(np.arange(COUNT), "i")
        graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [COUNT]))
    made = helper.make_model(graph, doc_string="d" * SMALL_BYTES)
    if place == "function":
        node = helper.make_node("Constant", [], ["z"], value=tensor)
        made.functions.append(helper.make_function("f", "F", [], ["z"], [node], [helper.make_opsetid("", 20)]))
    helper.set_model_props(made, {"key": "value", "large": "v" * SMALL_BYTES})
    return made.SerializeToString()


def known(data: bytes) -> onnx_file.ModelProto:
    read = onnx_file.ModelProto.FromString(data)
    read.DiscardUnknownFields()
    return read


PLACES = ["initializer", "constant", "subgraph", "sparse", "function"]


@pytest.mark.parametrize("kind", ["raw", "strings", "numbers"])
@pytest.mark.parametrize("place", PLACES)
def test_weights_go_and_what_is_known_stays(place, kind):
    data = model(weights(kind), place)
    short = known_fields(data, KIND)
    whole = known(data)
    assert known(short) == whole
    assert len(short) < len(whole.SerializeToString()) + 1000


@pytest.mark.parametrize("place", PLACES)
def test_a_large_tensor_whose_data_is_elsewhere_is_still_refused(place):
    tensor = weights("raw")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    with pytest.raises(UnsafeModel, match="keeps its data in another file"):
        checks.check(model(tensor, place))


@pytest.mark.parametrize("cut", [1, SMALL_BYTES // 2, SMALL_BYTES + 30_000])
def test_a_large_file_that_is_cut_short_is_no_model(cut):
    with pytest.raises(UnsafeModel, match="bytes that protobuf cannot read; it is cut short or damaged"):
        checks.check(model(weights("raw"), "initializer")[:-cut])


def test_a_file_of_too_many_subgraphs_within_one_another_is_no_model():
    inner = model(weights("raw"), "initializer")
    graph = onnx.ModelProto.FromString(inner).graph.SerializeToString()
    for _ in range(600):  # graph 6 of an attribute, attribute 5 of a node, node 1 of a graph
        graph = sized(1, sized(5, sized(6, graph)))
    with pytest.raises(UnsafeModel, match="bytes that protobuf cannot read"):
        checks.check(b"\x08\x09" + sized(7, graph))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*PLACES, "none"]), min_size=1, max_size=4), st.integers(1, 40), st.integers(0, 7))
def test_messages_that_are_merged_and_any_limit_mean_the_same(places, limit, tail):
    """Messages one behind the other are one message to protobuf; unknown fields may follow anywhere."""
    small = helper.make_tensor("w", TensorProto.FLOAT, [3], [1, 2, 3])
    data = b"".join(model(small, place) for place in places)
    data += b"\xf8\x07\x01" * tail
    before, module.SMALL_BYTES = module.SMALL_BYTES, limit
    try:
        short = known_fields(data, KIND)
    finally:
        module.SMALL_BYTES = before
    assert known(short) == known(data)
