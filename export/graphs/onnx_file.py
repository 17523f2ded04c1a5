"""Read an ONNX file from anyone: it must be self-contained, use known operators and be of bounded size.

External data is never read, wherever the file names it (initializers, sparse initializers, attributes, subgraphs,
functions). A path inside a file can lead out of its folder; readers that tried to check such paths had holes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from google.protobuf.message import DecodeError, Message
from onnx import version_converter

from normfold.export.choices import OPSETS
from normfold.export.errors import SourceError
from normfold.export.graphs.completing import Shapes, complete_shapes, count_sparse, densified
from normfold.export.graphs.domains import STANDARD
from normfold.export.graphs.serialize import MAX_BYTES
from normfold.plain_file import LFS_POINTER

__all__ = ["NEWEST_OPSET", "OLDEST_OPSET", "OnnxFile", "opset_of", "read_onnx"]

#: The opsets that can be read; an older onnx knows fewer.
OLDEST_OPSET, NEWEST_OPSET = 11, min(OPSETS[-1], onnx.defs.onnx_opset_version())
#: Domains whose operators are part of onnxruntime.
DOMAINS = (*STANDARD, "ai.onnx.ml", "com.microsoft")
#: How much of an error of the checker is shown.
MOST_CHARACTERS = 300
#: Largest accepted number of nodes; no network of this kind has as many.
MAX_NODES = 100_000
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


@dataclass(frozen=True)
class OnnxFile:
    """A file that was read and passed every check."""

    model: ir.Model
    #: The bytes of the file as they were read.
    content: bytes
    sha256: str
    notes: tuple[str, ...]


def read_onnx(path: Path, opset: int | None = None, shapes: Shapes = MappingProxyType({})) -> OnnxFile:
    """Read ``path`` and convert it to ``opset`` where it is older (None: do not convert). Raises SourceError.

    shapes are those of inputs that have none in the file.
    """
    if not path.is_file():
        raise SourceError(f"no file '{path}'")
    if path.stat().st_size > MAX_BYTES:
        raise SourceError(f"'{path}' is larger than the 2 GiB that one ONNX file can hold")
    content = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(content)
    except (DecodeError, ValueError, UnicodeDecodeError):
        if content.startswith(LFS_POINTER):
            raise SourceError(f"'{path}' is a pointer of Git LFS; get the file itself with git lfs pull") from None
        damaged = content[:1] == b"\x08"  # the field of the version of ONNX, which exporters write first
        why = f"it is cut short or damaged ({len(content)} bytes)" if damaged else f"it begins with {content[:8]!r}"
        raise SourceError(f"'{path}' is not an ONNX file: {why}") from None
    if not proto.graph.node and not proto.graph.output:
        raise SourceError(f"'{path}' is not an ONNX file, or holds an empty graph")
    _refuse_external(proto, path)
    _refuse_unknown(proto, path)
    _refuse_names(proto, path)
    _name_one_domain(proto, path)
    sparse = count_sparse(proto)
    proto = densified(proto, path)
    complete_shapes(proto, shapes, path)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # ValidationError, and RuntimeError for some broken graphs
        raise SourceError(f"'{path}' is not valid ONNX: {_first_sentence(error)}") from None
    proto, notes = _converted(proto, opset)
    if sparse:
        notes = (f"{sparse} sparse weight{'s are' if sparse > 1 else ' is'} written densely", *notes)
    model = ir.from_proto(proto)
    if model.functions:
        passes.InlinePass()(model)
    _refuse_dropout(model, path)
    return OnnxFile(model, content, hashlib.sha256(content).hexdigest(), notes)


def _refuse_external(proto: onnx.ModelProto, path: Path) -> None:
    for tensor in _tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise SourceError(
                f"'{path}' keeps the tensor '{tensor.name or '(unnamed)'}' in another file, which is not followed. "
                "Put everything into "
                "one file first: onnx.save(onnx.load('net.onnx'), 'whole.onnx')"
            )


def _refuse_unknown(proto: onnx.ModelProto, path: Path) -> None:
    local = {(f.domain, f.name) for f in proto.functions}
    nodes = 0
    for graph in _node_lists(proto):
        for node in graph:
            nodes += 1
            if nodes > MAX_NODES:
                raise SourceError(f"'{path}' holds more than {MAX_NODES} nodes")
            if node.domain not in DOMAINS and (node.domain, node.op_type) not in local:
                raise SourceError(
                    f"'{path}' uses the operator {node.domain}::{node.op_type}, which is not part of onnxruntime"
                )
            if node.op_type in _RANDOM:
                raise SourceError(f"'{path}' draws random numbers ({node.op_type}), so no two answers of it agree")
            standard = node.domain in STANDARD
            # onnxruntime counts the outputs, also those without a name
            statistics = standard and node.op_type == "BatchNormalization" and len(node.output) > 1
            if statistics or any(a.name == "training_mode" and a.i for a in node.attribute):
                raise _in_training(path, node.op_type, node.name or "".join(node.output[:1]))
    opset = opset_of(proto)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise SourceError(
            f"'{path}' is written in opset {opset}; expected {OLDEST_OPSET} to {NEWEST_OPSET}. Export it again with "
            f"{'a newer' if opset < OLDEST_OPSET else 'an older'} opset, for example opset_version=18"
        )


def _refuse_dropout(model: ir.Model, path: Path) -> None:
    """Refuse a Dropout that drops: since opset 12 its third input says so, unless its second one is a ratio of 0."""
    for node in model.graph.all_nodes():
        if node.op_type != "Dropout" or node.domain not in STANDARD or len(node.inputs) < 3:
            continue
        ratio, training = (None if v is None else ir.convenience.get_const_tensor(v) for v in node.inputs[1:3])
        if training is not None and training.numpy().any() and (ratio is None or ratio.numpy().any()):
            raise _in_training(path, node.op_type, node.name or node.outputs[0].name or "")


def _in_training(path: Path, operator: str, name: str) -> SourceError:
    return SourceError(f"'{path}' was exported in training mode ({operator} '{name}'): export it after eval()")


def _name_one_domain(proto: onnx.ModelProto, path: Path) -> None:
    """Call the standard operators "" where the file calls them "ai.onnx", another name of the same, in place."""
    for node in chain.from_iterable(_node_lists(proto)):
        if node.domain in STANDARD:
            node.domain = ""
    for imports in (proto.opset_import, *(f.opset_import for f in proto.functions)):
        versions = {int(o.version) for o in imports if o.domain in STANDARD}
        if len(versions) > 1:
            raise SourceError(f"'{path}' imports the standard operators in the opsets {sorted(versions)}; expected one")
        others = [o for o in imports if o.domain not in STANDARD]
        others += [onnx.helper.make_opsetid("", version) for version in versions]
        del imports[:]
        imports.extend(others)


def _refuse_names(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse names with control characters: names are printed, and a terminal would obey the characters."""
    pending: list[Message] = [proto.graph, *proto.functions]
    while pending:
        for field, value in pending.pop().ListFields():
            values = list(value) if field.is_repeated else [value]
            if field.message_type is not None:
                pending += [v for v in values if not isinstance(v, onnx.StringStringEntryProto)]
            elif field.type == field.TYPE_STRING and field.name != "doc_string":
                wrong = next((text for text in values if not text.isprintable()), None)
                if wrong is not None:
                    raise SourceError(f"'{path}' holds the name {wrong!r}, which has characters that cannot be printed")


def _converted(proto: onnx.ModelProto, opset: int | None) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    if opset is None or opset_of(proto) >= opset:
        return proto, ()
    try:
        return version_converter.convert_version(proto, opset), (f"converted from opset {opset_of(proto)} to {opset}",)
    except Exception as error:  # RuntimeError, ConvertError: an operator without an adapter
        return proto, (
            f"left in opset {opset_of(proto)}: it cannot be converted to {opset} ({_first_sentence(error)})",
        )


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the opset of the standard operators; 1 where the file names none."""
    return next((int(o.version) for o in proto.opset_import if o.domain in STANDARD), 1)


def _node_lists(proto: onnx.ModelProto) -> Iterator[Any]:
    pending: list[Any] = [proto.graph, *proto.functions, *(t.algorithm for t in proto.training_info)]
    while pending:
        graph = pending.pop()
        yield graph.node
        for node in graph.node:
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += attribute.graphs


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Yield every TensorProto inside ``message``, at any depth."""
    pending: list[Message] = [message]
    while pending:
        current = pending.pop()
        if isinstance(current, onnx.TensorProto):
            yield current
            continue
        for field, value in current.ListFields():
            if field.message_type is not None:
                pending += list(value) if field.is_repeated else [value]


def _first_sentence(error: Exception) -> str:
    """The error of the checker on one line, without the nodes that it prints behind it."""
    return " ".join(str(error).partition("==> Context")[0].split())[:MOST_CHARACTERS] or type(error).__name__
