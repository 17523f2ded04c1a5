"""Requests that differ from one seen before in nothing but their id and their numbers.

    ModelInferRequest = model name, version, id, [parameters, inputs, outputs], raw contents

A request whose bytes before its numbers were found good once, but for the id, needs no second look at them: they lead
to a plan, which makes arrays of the raw contents, and the bytes of the response of the arrays, without a message. What
is not of this form
(typed contents, shared memory, classification, BYTES) has no plan, and whatever does not fit its plan is left to those
who check it and say what is wrong.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import by_name
from normfold.serving.catalog.contract import reshaped
from normfold.serving.catalog.model import Model
from normfold.serving.infer.outputs import Wanted
from normfold.serving.infer.parameters import RequestParameters
from normfold.serving.runtime.bindings import Bound
from normfold.serving.scheduling.inline import RunTime
from normfold.serving.wire.typed import varint

Array = NDArray[Any]
BOOL, BYTES = by_name("BOOL"), by_name("BYTES")

#: Plans, and the heads of answers of one plan, that are kept; one more, and all are forgotten.
LIMIT = 512

#: Requests with more bytes before their first numbers have no plan.
HEAD_BYTES = 4096

#: Requests of one length have plans for so many lengths of their heads.
HEADS = 8

#: Inputs and outputs of so many bytes together stay where they are from one run to the next.
BOUND_BYTES = 16 << 10

#: The first byte of each field of ModelInferRequest: number << 3 | 2 (a length and so many bytes).
_VERSION, _ID, _RAW = 2 << 3 | 2, 3 << 3 | 2, 7 << 3 | 2
_HEAD = frozenset(number << 3 | 2 for number in (1, 2, 4, 5, 6))

_RESPONSE_RAW = bytes([6 << 3 | 2])


class Parts(NamedTuple):
    """A serialized request, taken apart."""

    #: Where the field of the id begins and ends; equal without one.
    id: tuple[int, int]
    #: Where each of the raw contents begins and ends.
    spans: list[tuple[int, int]]


def parts(data: bytes) -> Parts | None:
    """The parts of a serialized ModelInferRequest; None where its fields are not in the usual form and order."""
    at, end = 0, len(data)
    start_id = end_id = 0
    spans = []
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
            elif tag == _ID and not end_id:
                start_id, end_id = at, begin + size
            elif tag not in _HEAD:
                return None
            at = begin + size
    except IndexError:
        return None
    return Parts((start_id, end_id), spans) if at == end and spans else None


def find_id(data: bytes) -> tuple[int, int]:
    """Where the field of the id begins and ends, in the usual order of fields and if none is long; equal without one.

    Of other bytes it may say anything within their length.
    """
    try:
        at = data[1] + 2
        if data[at] == _VERSION:
            at += data[at + 1] + 2
        if data[at] == _ID and data[at + 1] < 0x80:
            return at, at + data[at + 1] + 2
    except IndexError:
        return 0, 0
    return at, at


class PlannedInput(NamedTuple):
    """An input as the model file takes it, and where its numbers stand in a request without an id."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


class Plan:
    """How the requests that differ in nothing but their id and their numbers are answered."""

    def __init__(
        self,
        model: Model,
        inputs: Sequence[PlannedInput],
        between: Sequence[tuple[int, bytes]],
        rows: int,
        wanted: Sequence[Wanted],
        parameters: RequestParameters,
        known: RunTime,
    ) -> None:
        self.model, self.rows, self.parameters = model, rows, parameters
        #: In the order of their raw contents.
        self.inputs = tuple(inputs)
        #: What stands between the raw contents, and where in a request without an id.
        self.between = tuple(between)
        self.wanted = tuple(wanted)
        self.outputs = [want.spec.name for want in wanted]
        #: What is known of runs with these shapes.
        self.known = known
        #: Shapes of the output arrays -> the response without id and raw contents.
        self._heads: dict[tuple[tuple[int, ...], ...], bytes] = {}
        self._bound: Bound | None = None
        self._bindable = True
        self._pieces: list[Any] = []

    def feeds(self, data: bytes, shift: int) -> dict[str, Array]:
        """The inputs in ``data``, a request with ``shift`` bytes of id.

        They are views of ``data`` wherever its elements are aligned, which onnxruntime's kernels may rely on.
        """
        feeds = {}
        for name, dtype, shape, start, end in self.inputs:
            start, end = start + shift, end + shift
            if start % dtype.itemsize:
                array = np.frombuffer(data[start:end], dtype)
            else:
                array = np.frombuffer(data, dtype, (end - start) // dtype.itemsize, start)
            feeds[name] = array.reshape(shape)
        return feeds

    def run(self, data: bytes, shift: int, identifier: bytes) -> tuple[bytes, int, int]:
        """The response, and when the model began and ended to run, which it does here and now.

        Raises what the model raises.
        """
        bound = self._bound
        if bound is None:
            feeds = self.feeds(data, shift)
            read = time.perf_counter_ns()
            arrays = self.model.run(feeds, self.outputs)
            ran = time.perf_counter_ns()
            if self._bindable:
                self._bind(feeds, arrays)
            return self.response(arrays, identifier), read, ran
        for view, (_, _, _, start, end) in zip(bound.views, self.inputs, strict=True):
            view[:] = data[start + shift : end + shift]
        read = time.perf_counter_ns()
        try:
            bound.run()
        except Exception:  # perhaps the shapes of the outputs depend on the numbers of the inputs
            self._bound, self._bindable = None, False
            raise
        ran = time.perf_counter_ns()
        return b"".join([identifier, *self._pieces] if identifier else self._pieces), read, ran

    def _bind(self, feeds: Mapping[str, Array], arrays: Sequence[Array]) -> None:
        self._bindable = False
        if sum([a.nbytes for a in (*feeds.values(), *arrays)]) <= BOUND_BYTES:
            self._bound = self.model.session.bind(feeds, dict(zip(self.outputs, arrays, strict=True)))
        if self._bound is not None:
            self._pieces = self._response(self._bound.outputs)

    def response(self, arrays: Sequence[Array], identifier: bytes) -> bytes:
        """A serialized ModelInferResponse; ``identifier`` is the field of the id, which is the request's."""
        return b"".join([identifier, *self._response(arrays)])

    def _response(self, arrays: Sequence[Array]) -> list[Any]:
        shapes = tuple([array.shape for array in arrays])
        head = self._heads.get(shapes)
        if head is None:
            if len(self._heads) >= LIMIT:
                self._heads.clear()
            head = self._heads[shapes] = self._head(shapes)
        pieces: list[Any] = [head]
        for array in arrays:
            pieces += [_RESPONSE_RAW, varint(array.nbytes), np.ascontiguousarray(array)]
        return pieces

    def _head(self, shapes: tuple[tuple[int, ...], ...]) -> bytes:
        response = pb.ModelInferResponse(model_name=self.model.name, model_version=str(self.model.version))
        for want, shape in zip(self.wanted, shapes, strict=True):
            spec = want.spec
            seen = shape if spec.reshape is None else reshaped(shape, spec.reshape, spec.shape)
            response.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=seen)
        return response.SerializeToString()


class Plans:
    """The plans of a server by what their requests begin with, without the id."""

    def __init__(self) -> None:
        self._plans: dict[bytes, Plan] = {}
        #: Bytes of a request without its id -> how many of them stand before its first numbers.
        self._lengths: dict[int, tuple[int, ...]] = {}

    def find(self, data: bytes) -> tuple[Plan, int, int] | None:
        """The plan for a request, and where the field of its id begins and ends."""
        start, end = find_id(data)
        for length in self._lengths.get(len(data) - end + start, ()):
            if start == end:
                plan = self._plans.get(data[:length])
            else:
                plan = self._plans.get(data[:start] + data[end : length + end - start])
            if plan is not None and (start == end or data[start:end].isascii()):
                for at, between in plan.between:
                    if not data.startswith(between, at + end - start):
                        return None
                return plan, start, end
        return None

    def forget(self) -> None:
        """Drop all: the models have changed."""
        self._plans.clear()
        self._lengths.clear()

    def keep(
        self,
        data: bytes,
        request: pb.ModelInferRequest,
        model: Model,
        feeds: dict[str, Array],
        rows: int,
        wanted: Sequence[Wanted],
        parameters: RequestParameters,
    ) -> None:
        """Make a plan of a request that was found good, if it is of the form that can have one."""
        found = parts(data)
        if found is None or any(w.classes or w.typed or w.region or w.spec.datatype is BYTES for w in wanted):
            return
        start, end = find_id(data)
        if found.id != (start, end) and (start < end or found.id[0] < found.id[1]):
            return  # a long id, or one in another place
        shift = end - start
        planned = []
        for tensor, span in zip(request.inputs, found.spans, strict=False):
            datatype, array = model.contract.inputs[tensor.name].datatype, feeds[tensor.name]
            if datatype in (BOOL, BYTES) or not array.size or "shared_memory_region" in tensor.parameters:
                return
            if tensor.HasField("contents"):
                return
            planned.append(PlannedInput(tensor.name, datatype.dtype, array.shape, span[0] - shift, span[1] - shift))
        head = data[:start] + data[end : found.spans[0][0]]
        lengths = self._lengths.get(len(data) - shift, ())
        if len(found.spans) != len(request.inputs) or len(head) > HEAD_BYTES:
            return
        if len(head) not in lengths:
            if len(lengths) >= HEADS:
                return
            lengths = (*lengths, len(head))
        if len(self._plans) >= LIMIT:
            self.forget()
            lengths = (len(head),)
        between = [(before - shift, data[before:after]) for (_, before), (after, _) in itertools.pairwise(found.spans)]
        known = model.scheduler.times.of(feeds)
        self._lengths[len(data) - shift] = lengths
        self._plans[head] = Plan(model, planned, between, rows, wanted, parameters, known)
