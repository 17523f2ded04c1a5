"""The checks of a model file before onnxruntime sees it.

onnxruntime would follow a tensor's `external_data` out of the model's folder through a hard link, and would load a
FlatBuffer (`.ort`) under any file name; neither is served. The checks read the same bytes that the session is then
made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from normfold.plain_file import LFS_POINTER
from normfold.protos import onnx_file as onnx
from normfold.serving.errors import UnsafeModel
from normfold.serving.runtime.run_length import numbers_decide
from normfold.serving.runtime.text_growth import TextGrowth, text_growth
from normfold.serving.wire.known_fields import known_fields

#: Bytes 4 to 8 of an onnxruntime FlatBuffer.
ORT_FORMAT = b"ORTM"


@dataclass(frozen=True)
class FileFacts:
    """The facts that are read from a model file itself, not from its session."""

    #: The inputs and outputs that declare no shape, which onnxruntime shows as rank 0.
    unranked: frozenset[str]
    #: The file's metadata by key.
    metadata: Mapping[str, str]
    #: Whether runs with equal shapes may take very different times.
    numbers_decide: bool
    #: What the strings that its graph makes take; None: no more than those of the request.
    text_growth: TextGrowth | None


def check(data: bytes, sent: Set[str] = frozenset()) -> FileFacts:
    """The facts about the model file ``data``, of which requests may send the defaults ``sent``, too.

    Raises UnsafeModel unless it is an ONNX model that holds all of its tensors itself.
    """
    if data[4:8] == ORT_FORMAT:
        raise UnsafeModel("the file is in onnxruntime's own .ort format, not ONNX; publish the .onnx file instead")
    if data.startswith(LFS_POINTER):
        raise UnsafeModel("the file is a pointer of Git LFS, and the model is elsewhere: get it with git lfs pull")
    try:
        model = onnx.ModelProto.FromString(known_fields(data, onnx.ModelProto.DESCRIPTOR))
    except (ValueError, DecodeError):
        cut = "; it is cut short or damaged: write it again" if data[:1] == b"\x08" else ""  # as ONNX files begin
        raise UnsafeModel(f"the file is not an ONNX model: {len(data)} bytes that protobuf cannot read{cut}") from None
    if not model.HasField("graph"):
        raise UnsafeModel(f"the file is not an ONNX model: {len(data)} bytes without a graph")
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise UnsafeModel(
                f"tensor {tensor.name!r} keeps its data in another file, which is never followed; "
                "save the model with all data inside (onnx.save(model, path, save_as_external_data=False))"
            )
    values = (*model.graph.input, *model.graph.output)
    unranked = frozenset(value.name for value in values if not value.type.tensor_type.HasField("shape"))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return FileFacts(unranked, metadata, numbers_decide(model, sent), text_growth(model, sent))


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model: initializers, attributes, sparse ones, subgraphs, functions, training."""
    graphs = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    for function in model.functions:
        yield from _of_nodes(function.node, graphs)
    while graphs:
        graph = graphs.pop()
        yield from graph.initializer
        yield from _dense(graph.sparse_initializer)
        yield from _of_nodes(graph.node, graphs)


def _of_nodes(nodes: Iterable[onnx.NodeProto], graphs: list[onnx.GraphProto]) -> Iterator[onnx.TensorProto]:
    """The tensors in the attributes of ``nodes``; graphs in the attributes are appended to ``graphs``."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from _dense([attribute.sparse_tensor])
            yield from _dense(attribute.sparse_tensors)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs += attribute.graphs


def _dense(sparse: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices
