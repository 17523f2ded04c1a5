"""Requests that differ from one seen before in nothing but their id and their numbers.

    ModelInferRequest = head (model, version, parameters, inputs, outputs), id, raw contents

A request whose head was found good once needs no second look at it: the bytes of the head lead to a plan, which makes
arrays of the raw contents, and the bytes of the response of the arrays, without a message. What is not of this form
(typed contents, shared memory, classification, BYTES) has no plan, and whatever does not fit its plan is left to those
who check it and say what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import by_name
from normfold.serving.contract import reshaped
from normfold.serving.model import Model
from normfold.serving.outputs import Wanted
from normfold.serving.parameters import RequestParameters
from normfold.serving.typed import varint

Array = NDArray[Any]
BOOL, BYTES = by_name("BOOL"), by_name("BYTES")

#: Plans, and the heads of answers of one plan, that are kept; one more, and all are forgotten.
LIMIT = 512

#: A longer head is not kept.
HEAD_BYTES = 4096

#: The first byte of each field of ModelInferRequest: number << 3 | 2 (a length and so many bytes).
_ID, _RAW = 3 << 3 | 2, 7 << 3 | 2
_HEAD = frozenset(number << 3 | 2 for number in (1, 2, 4, 5, 6))

_RESPONSE_ID = bytes([3 << 3 | 2])
_RESPONSE_RAW = bytes([6 << 3 | 2])


class Parts(NamedTuple):
    """A serialized request, taken apart."""

    head: bytes
    #: As the response repeats it; ASCII.
    id: bytes
    #: Where each of the raw contents begins and ends.
    spans: list[tuple[int, int]]


def parts(data: bytes) -> Parts | None:
    """The parts of a serialized ModelInferRequest; None where its fields are not in the usual form and order."""
    at, end = 0, len(data)
    start_id = end_id = 0
    identifier, spans, head_end = b"", [], 0
    try:
        while at < end:
            tag, size, begin = data[at], data[at + 1], at + 2
            if size & 0x80:
                shift = 7
                size &= 0x7F
                while (byte := data[begin]) & 0x80 and shift < 28:
                    size |= (byte & 0x7F) << shift
                    shift, begin = shift + 7, begin + 1
                size |= byte << shift
                begin += 1
            if tag == _RAW:
                spans.append((begin, begin + size))
            elif spans:
                return None
            elif tag == _ID and not identifier:
                start_id, end_id = at, begin + size
                identifier = data[begin:end_id]
            elif tag not in _HEAD:
                return None
            at = begin + size
            if tag != _RAW:
                head_end = at
    except IndexError:
        return None
    if at != end or not spans or not identifier.isascii():
        return None
    return Parts(data[:start_id] + data[end_id:head_end], identifier, spans)


class PlannedInput(NamedTuple):
    """An input as the model file takes it."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Plan:
    """How the requests with one head are answered."""

    model: Model
    #: In the order of their raw contents.
    inputs: tuple[PlannedInput, ...]
    rows: int
    wanted: tuple[Wanted, ...]
    #: The names of ``wanted``.
    outputs: list[str]
    parameters: RequestParameters
    #: Shapes of the output arrays -> the response without id and raw contents.
    heads: dict[tuple[tuple[int, ...], ...], bytes] = field(default_factory=dict)

    def feeds(self, data: bytes, spans: Sequence[tuple[int, int]]) -> dict[str, Array] | None:
        """The inputs in ``data``; None where a size is wrong.

        They are views of ``data`` wherever its elements are aligned, which onnxruntime's kernels may rely on.
        """
        if len(spans) != len(self.inputs):
            return None
        feeds = {}
        for (start, end), (name, dtype, shape, size) in zip(spans, self.inputs, strict=True):
            if end - start != size:
                return None
            if start % dtype.itemsize:
                array = np.frombuffer(data[start:end], dtype)
            else:
                array = np.frombuffer(data, dtype, size // dtype.itemsize, start)
            feeds[name] = array.reshape(shape)
        return feeds

    def response(self, arrays: Sequence[Array], identifier: bytes) -> bytes:
        """A serialized ModelInferResponse."""
        shapes = tuple([array.shape for array in arrays])
        head = self.heads.get(shapes)
        if head is None:
            if len(self.heads) >= LIMIT:
                self.heads.clear()
            head = self.heads[shapes] = self._head(shapes)
        pieces: list[Any] = [head]
        if identifier:
            pieces += [_RESPONSE_ID, varint(len(identifier)), identifier]
        for array in arrays:
            pieces += [_RESPONSE_RAW, varint(array.nbytes), np.ascontiguousarray(array)]
        return b"".join(pieces)

    def _head(self, shapes: tuple[tuple[int, ...], ...]) -> bytes:
        response = pb.ModelInferResponse(model_name=self.model.name, model_version=str(self.model.version))
        for want, shape in zip(self.wanted, shapes, strict=True):
            spec = want.spec
            seen = shape if spec.reshape is None else reshaped(shape, spec.reshape, spec.shape)
            response.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=seen)
        return response.SerializeToString()


class Plans:
    """The plans of a server by the head of their requests."""

    def __init__(self) -> None:
        self._plans: dict[bytes, Plan] = {}

    def find(self, head: bytes) -> Plan | None:
        """The plan for requests with this head."""
        return self._plans.get(head)

    def forget(self) -> None:
        """Drop all: the models have changed."""
        self._plans.clear()

    def keep(
        self,
        head: bytes,
        request: pb.ModelInferRequest,
        model: Model,
        feeds: dict[str, Array],
        rows: int,
        wanted: Sequence[Wanted],
        parameters: RequestParameters,
    ) -> None:
        """Make a plan of a request that was found good, if it is of the form that can have one."""
        if len(head) > HEAD_BYTES or any(w.classes or w.typed or w.region or w.spec.datatype is BYTES for w in wanted):
            return
        planned = []
        for tensor in request.inputs:
            datatype, array = model.contract.inputs[tensor.name].datatype, feeds[tensor.name]
            if datatype in (BOOL, BYTES) or not array.size or "shared_memory_region" in tensor.parameters:
                return
            if tensor.HasField("contents"):
                return
            planned.append(PlannedInput(tensor.name, datatype.dtype, array.shape, array.nbytes))
        if len(self._plans) >= LIMIT:
            self._plans.clear()
        names = [want.spec.name for want in wanted]
        self._plans[head] = Plan(model, tuple(planned), rows, tuple(wanted), names, parameters)
