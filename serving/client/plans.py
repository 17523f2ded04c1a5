"""Requests and answers whose bytes before the numbers are known from an earlier call: protobuf is asked only once.

    request = model, version, [id], inputs, outputs | raw contents
    answer  = model, version, parameters, outputs   | raw contents

The first part of a request depends on names, dtypes and shapes only; an answer to it usually begins with the bytes of
the answer before. Whatever has another form is left to protobuf, which gives the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import by_dtype, by_name
from normfold.serving.client import calls
from normfold.serving.client.errors import ClientError
from normfold.serving.client.inputs import Array
from normfold.serving.client.metadata import ModelMetadata
from normfold.serving.errors import Status
from normfold.serving.wire.request_bytes import find_id
from normfold.serving.wire.varint import varint

#: The plans of one client; all are forgotten when there would be more.
LIMIT = 256
#: The bytes before the size of each raw content: the number of its field << 3 | 2.
_RAW_INPUT, _RAW_OUTPUT = bytes([7 << 3 | 2]), bytes([6 << 3 | 2])
_ID = bytes([3 << 3 | 2])
#: Longer heads of answers are not kept, in bytes.
_LONGEST_HEAD = 4096


@dataclass(slots=True)
class MessagePlan:
    """The bytes of a request, without its id and its numbers."""

    before_id: bytes
    after_id: bytes
    shapes: dict[str, tuple[int, ...]]
    #: The tag and the size before each raw content.
    sizes: list[bytes]
    #: The metadata to which the shapes were held; None: none yet.
    checked: ModelMetadata | None = None

    def data(self, inputs: Any, request_id: str) -> bytes:
        """The serialized request with the arrays of ``inputs``, which are those that the plan was made for."""
        parts: list[Any] = [self.before_id]
        if request_id:
            text = request_id.encode()
            parts += (_ID, varint(len(text)), text)
        parts.append(self.after_id)
        for size, array in zip(self.sizes, inputs.values(), strict=True):
            parts.append(size)
            parts.append(array if array.flags.c_contiguous else array.tobytes())
        return b"".join(parts)


@dataclass(slots=True)
class _AnswerPlan:
    """The bytes of an answer before its numbers, and where these are."""

    head: bytes
    #: Name, dtype and shape of each output, begin of its tag, the tag and size, begin and end of its numbers.
    outputs: list[tuple[str, np.dtype[Any], tuple[int, ...], int, bytes, int, int]] = field(default_factory=list)


class MessagePlans:
    """The plans of one client. Threads may use it at once."""

    def __init__(self) -> None:
        self._requests: dict[Any, MessagePlan] = {}
        #: By the size of the whole answer.
        self._answers: dict[int, _AnswerPlan] = {}

    def request(self, model: str, inputs: Any, outputs: Iterable[str] | None, version: str | int) -> MessagePlan | None:
        """The plan of a request whose inputs are arrays of numbers by name; None for any other request.

        Raises ValueError as ``calls.infer_request`` does.
        """
        if type(inputs) is not dict:
            return None
        if outputs is not None and not isinstance(outputs, str):
            outputs = tuple(outputs)
        key: list[Any] = [model, version, type(version), outputs]
        for name, array in inputs.items():
            if type(array) is not np.ndarray:
                return None
            key += (name, array.dtype, array.shape)
        try:
            known = tuple(key)
            plan = self._requests.get(known)
        except TypeError:  # something that cannot be hashed, and is no name
            return None
        if plan is None:
            plan = self._made(model, inputs, outputs, version)
            if plan is not None:
                if len(self._requests) >= LIMIT:
                    self._requests.clear()
                self._requests[known] = plan
        return plan

    def arrays(self, data: bytes) -> dict[str, Array]:
        """The outputs in a serialized ModelInferResponse, as ``calls.arrays`` gives them. Raises ClientError."""
        plan = self._answers.get(len(data))
        if plan is not None and data.startswith(plan.head):
            found = {}
            for name, dtype, shape, at, size, begin, end in plan.outputs:
                if not data.startswith(size, at):
                    break
                array = np.frombuffer(data[begin:end], dtype)
                array.shape = shape
                found[name] = array
            else:
                return found
        try:
            response = pb.ModelInferResponse.FromString(data)
        except DecodeError:
            raise ClientError(Status.INTERNAL, "the server's answer is not a ModelInferResponse") from None
        arrays = calls.arrays(response)
        if not response.id and (made := _answer_plan(data, response, arrays)) is not None:
            if len(self._answers) >= LIMIT:
                self._answers.clear()
            self._answers[len(data)] = made
        return arrays

    @staticmethod
    def _made(
        model: str, inputs: dict[str, Array], outputs: Iterable[str] | None, version: str | int
    ) -> MessagePlan | None:
        try:
            datatypes = [by_dtype(array.dtype) for array in inputs.values()]
        except KeyError:
            return None
        if any(
            one.name in ("BYTES", "BF16") or array.dtype != one.dtype
            for one, array in zip(datatypes, inputs.values(), strict=True)
        ):
            return None
        request = calls.infer_request(model, inputs, outputs, version)
        shapes = {tensor.name: tuple(tensor.shape) for tensor in request.inputs}
        sizes = [_RAW_INPUT + varint(len(raw)) for raw in request.raw_input_contents]
        del request.raw_input_contents[:]
        head = request.SerializeToString()
        at, end = find_id(head)
        if at != end or not 0 < at <= len(head):
            return None  # a name of 128 bytes or more
        return MessagePlan(head[:at], head[at:], shapes, sizes)


def _answer_plan(data: bytes, response: pb.ModelInferResponse, arrays: Mapping[str, Array]) -> _AnswerPlan | None:
    """The plan of an answer that has only numbers, behind everything else; None for any other."""
    outputs, raws = response.outputs, response.raw_output_contents
    if len(raws) != len(outputs) or len(arrays) != len(outputs) or not raws:
        return None
    sizes = [_RAW_OUTPUT + varint(len(raw)) for raw in raws]
    begin = len(data) - sum(map(len, sizes)) - sum(map(len, raws))
    if not 0 < begin <= _LONGEST_HEAD:
        return None
    try:
        head = pb.ModelInferResponse.FromString(data[:begin])
    except DecodeError:
        return None
    if head.raw_output_contents or len(head.outputs) != len(outputs):
        return None
    plan = _AnswerPlan(data[:begin])
    for output, size, raw in zip(outputs, sizes, raws, strict=True):
        if output.datatype == "BYTES" or not data.startswith(size, begin):
            return None
        first = begin + len(size)
        dtype, shape = by_name(output.datatype).dtype, tuple(output.shape)
        plan.outputs.append((output.name, dtype, shape, begin, size, first, first + len(raw)))
        begin = first + len(raw)
    return plan
