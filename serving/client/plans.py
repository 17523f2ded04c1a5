"""Requests and answers of numbers only: written and read without protobuf, their heads once for all equal calls.

    request = model, version, [id], inputs, outputs | raw contents
    answer  = model, version, parameters, outputs   | raw contents

The first part of a request depends on names, dtypes and shapes only; an answer to it usually begins with the bytes of
the answer before. Whatever has another form is left to protobuf, which gives the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normfold.protos.datatypes import by_dtype, by_name
from normfold.serving.client import calls
from normfold.serving.client.arguments import checked_model, checked_text, checked_version
from normfold.serving.client.errors import ClientError
from normfold.serving.client.inputs import Array
from normfold.serving.client.metadata import ModelMetadata, described
from normfold.serving.errors import Status
from normfold.serving.wire.fields import fields, packed, sized
from normfold.serving.wire.varint import varint

#: The plans of one client; all are forgotten when there would be more.
LIMIT = 256
#: The byte before the size of each raw content: the number of its field << 3 | 2.
_RAW_INPUT = bytes([7 << 3 | 2])
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
    has_id: bool = False
    model: str = ""
    version: str = ""

    def arrays(self, data: bytes) -> calls.Answer | None:
        """The outputs of an answer that begins with ``head``; None where the numbers are not at these places."""
        found = calls.Answer(self.model, self.version)
        for name, dtype, shape, at, size, begin, end in self.outputs:
            if not data.startswith(size, at):
                return None
            array = np.frombuffer(data[begin:end], dtype)
            array.shape = shape
            found[name] = array
        return found


class MessagePlans:
    """The plans of one client. Threads may use it at once."""

    def __init__(self) -> None:
        self._requests: dict[Any, MessagePlan] = {}
        #: By the size of the whole answer.
        self._answers: dict[int, _AnswerPlan] = {}

    def request(self, model: str, inputs: Any, outputs: tuple[str, ...], version: str | int) -> MessagePlan | None:
        """The plan of a request whose inputs are arrays of numbers by name; None for any other request.

        ``outputs`` are checked names. Raises ValueError as ``calls.infer_request`` does.
        """
        if type(inputs) is not dict:
            return None
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

    def arrays(self, data: bytes) -> calls.Answer:
        """The outputs in a serialized ModelInferResponse, as ``calls.arrays`` gives them. Raises ClientError."""
        plan = self._answers.get(len(data))
        if plan is not None and data.startswith(plan.head):
            found = plan.arrays(data)
            if found is not None:
                return found
        try:
            plan = _answer_plan(data)
            found = None if plan is None else plan.arrays(data)
        except (ValueError, KeyError):
            plan = found = None
        if plan is None or found is None:
            return _by_protobuf(data)
        if len(plan.head) <= _LONGEST_HEAD and not plan.has_id:
            if len(self._answers) >= LIMIT:
                self._answers.clear()
            self._answers[len(data)] = plan
        return found

    @staticmethod
    def _made(model: str, inputs: dict[str, Array], outputs: tuple[str, ...], version: str | int) -> MessagePlan | None:
        try:
            datatypes = [by_dtype(array.dtype) for array in inputs.values()]
        except KeyError:
            return None
        if any(
            one.name in ("BYTES", "BF16") or array.dtype != one.dtype
            for one, array in zip(datatypes, inputs.values(), strict=True)
        ):
            return None
        if not all(isinstance(name, str) for name in inputs):
            return None
        # ModelInferRequest: model name = 1, version = 2, id = 3, inputs = 5, outputs = 6, raw contents = 7
        before = sized(1, checked_model(model).encode()) + sized(2, checked_version(version).encode())
        after, sizes = b"", []
        for (name, array), datatype in zip(inputs.items(), datatypes, strict=True):
            tensor = (
                sized(1, checked_text("input", name).encode())
                + sized(2, datatype.name.encode())
                + packed(3, array.shape)
            )
            after += sized(5, tensor)
            sizes.append(_RAW_INPUT + varint(array.nbytes))
        for name in outputs:
            after += sized(6, sized(1, name.encode()))
        return MessagePlan(before, after, {name: array.shape for name, array in inputs.items()}, sizes)


def _answer_plan(data: bytes) -> _AnswerPlan | None:
    """The plan of an answer that has only numbers, behind everything else; None for any other.

    ModelInferResponse: model name = 1, version = 2, id = 3, outputs = 5, raw contents = 6. Raises ValueError or
    KeyError where it cannot be read.
    """
    outputs: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    raws: list[tuple[int, int, int]] = []
    has_id, names = False, {1: "", 2: ""}
    for number, first, begin, end in fields(data):
        if number == 6:
            raws.append((first, begin, end))
        elif raws:
            return None
        elif number in names:
            names[number] = data[begin:end].decode()
        elif number == 5:
            if (output := _output(data[begin:end])) is None:
                return None
            outputs.append(output)
        has_id = has_id or number == 3
    if not raws or len(raws) != len(outputs) or len({name for name, _, _ in outputs}) != len(outputs):
        return None
    plan = _AnswerPlan(data[: raws[0][0]], has_id=has_id, model=names[1], version=names[2])
    for (name, dtype, shape_), (first, begin, end) in zip(outputs, raws, strict=True):
        if math.prod(shape_) * dtype.itemsize != end - begin:
            return None
        plan.outputs.append((name, dtype, shape_, first, data[first:begin], begin, end))
    return plan


def _output(data: bytes) -> tuple[str, np.dtype[Any], tuple[int, ...]] | None:
    """Name, dtype and shape of an output of numbers in raw contents; None for any other.

    InferOutputTensor has its contents in field 5. Raises as ``_answer_plan``.
    """
    tensor, others = described(data)
    if 5 in others:
        return None
    dtype = by_name(tensor.datatype).dtype
    if dtype.hasobject or any(size < 0 for size in tensor.shape):
        return None
    return tensor.name, dtype, tensor.shape


def _by_protobuf(data: bytes) -> calls.Answer:
    from google.protobuf.message import DecodeError

    from normfold.protos import grpc_service as pb

    try:
        response = pb.ModelInferResponse.FromString(data)
    except DecodeError:
        raise ClientError(Status.INTERNAL, "the server's answer is not a ModelInferResponse") from None
    return calls.arrays(response)
