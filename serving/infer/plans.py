"""Planned requests: those that differ from an earlier request only in their id and their numbers.

    ModelInferRequest = model name, version, id, [parameters, inputs, outputs], raw contents
                        └──────────────────── head ───────────────────────┘

The head of a request is everything before its first numbers, without the id. A head that was checked once is not
checked again: it leads to a plan. The plan makes arrays from the raw contents, and the bytes of the response from the
arrays that the model answers; no protobuf message is made. Requests with typed contents, shared memory, classification
or BYTES have no plan. A request that does not fit its plan takes the ordinary path, which checks it and reports what is
wrong.
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
from normfold.serving.catalog.model import Model
from normfold.serving.infer.outputs import PIECES_BYTES, RESPONSE_RAW, Wanted, is_part
from normfold.serving.infer.parameters import RequestParameters
from normfold.serving.rpc.pieces import Answer, Pieces
from normfold.serving.runtime.bindings import Bound
from normfold.serving.scheduling.inline import RunTime
from normfold.serving.wire.lifted import aligned
from normfold.serving.wire.request_bytes import find_id, parts
from normfold.serving.wire.varint import varint

Array = NDArray[Any]
BOOL, BYTES = by_name("BOOL"), by_name("BYTES")

#: The largest number of plans, and of heads of responses in one plan. A cache that would exceed it is cleared.
LIMIT = 512

#: A request with a longer head has no plan.
HEAD_BYTES = 4096

#: A request with more parameters has no plan.
PARAMETERS = 64

#: For one total length of a request, at most this many different lengths of its head are tried.
HEADS = 8

#: Inputs and outputs of at most this many bytes together stay at their places in memory from one run to the next.
BOUND_BYTES = 16 << 10


class PlannedInput(NamedTuple):
    """An input as the model file takes it, and where its numbers are in a request without an id."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


class RequestPlan:
    """How to answer requests that differ only in their id and their numbers."""

    def __init__(
        self,
        model: Model,
        size: int,
        inputs: Sequence[PlannedInput],
        between: Sequence[tuple[int, bytes]],
        rows: int,
        wanted: Sequence[Wanted],
        parameters: RequestParameters,
        run_time: RunTime,
    ) -> None:
        self.model, self.rows, self.parameters = model, rows, parameters
        #: The bytes of a request without the field of its id.
        self.size = size
        #: The inputs, in the order of their raw contents.
        self.inputs = tuple(inputs)
        #: The bytes between the raw contents, each with its position in a request without an id.
        self.between = tuple(between)
        self.wanted = tuple(wanted)
        self.outputs = [want.spec.name for want in wanted]
        #: How long runs with these shapes take.
        self.run_time = run_time
        #: Shapes of the output arrays -> the serialized response without id and raw contents.
        self._heads: dict[tuple[tuple[int, ...], ...], bytes] = {}
        self._bound: Bound | None = None
        self._bindable = True
        self._pieces: list[Any] = []

    def feeds(self, data: bytes, shift: int) -> dict[str, Array]:
        """The inputs of the request ``data``, in which the field of the id takes ``shift`` bytes.

        They are views of ``data`` where its elements are aligned, because onnxruntime's kernels may rely on alignment,
        and copies elsewhere.
        """
        feeds = {}
        for name, dtype, shape, start, end in self.inputs:
            start, end = start + shift, end + shift
            if start % dtype.itemsize:
                array = aligned(memoryview(data)[start:end], dtype)
            else:
                array = np.frombuffer(data, dtype, (end - start) // dtype.itemsize, start)
            feeds[name] = array.reshape(shape)
        return feeds

    def run(self, data: bytes, identifier: bytes) -> tuple[bytes, int, int]:
        """Run the model on the calling thread; the response, and when the run began and ended.

        ``identifier`` is the field of the id in ``data``. Raises what the model raises.
        """
        bound, shift = self._bound, len(identifier)
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
        except Exception:  # the shapes of the outputs may depend on the input's numbers
            self._bound, self._bindable = None, False
            raise
        ran = time.perf_counter_ns()
        return b"".join([identifier, *self._pieces] if identifier else self._pieces), read, ran

    def _bind(self, feeds: Mapping[str, Array], arrays: Sequence[Array]) -> None:
        self._bindable = False
        if sum([a.nbytes for a in (*feeds.values(), *arrays)]) > BOUND_BYTES:
            return
        bound = self.model.session.bind(feeds, dict(zip(self.outputs, arrays, strict=True)))
        if bound is not None:
            self._pieces = self._response(bound.outputs)
            self._bound = bound  # only now: an output that cannot be named has raised

    def response(self, arrays: Sequence[Array], identifier: bytes) -> bytes:
        """A serialized ModelInferResponse; ``identifier`` is the field of the id, the same bytes as in the request."""
        return b"".join([identifier, *self._response(arrays)])

    def answer(self, arrays: Sequence[Array], identifier: bytes) -> Answer:
        """The same, in pieces where it is large and the arrays are no part of larger ones, which would stay with it."""
        size = sum([array.nbytes for array in arrays])
        if size < PIECES_BYTES or any(map(is_part, arrays)):
            return self.response(arrays, identifier)
        head, *numbers = self._response(arrays)
        parts: list[bytes | memoryview] = [identifier + head]
        for begin, length, array in zip(*[iter(numbers)] * 3, strict=True):
            parts += [begin + length, array.reshape(-1).view(np.uint8).data]
        return Pieces(parts)

    def _response(self, arrays: Sequence[Array]) -> list[Any]:
        shapes = tuple([array.shape for array in arrays])
        head = self._heads.get(shapes)
        if head is None:
            if len(self._heads) >= LIMIT:
                self._heads.clear()
            head = self._heads[shapes] = self._head(shapes)
        pieces: list[Any] = [head]
        for array in arrays:
            pieces += [RESPONSE_RAW, varint(array.nbytes), np.ascontiguousarray(array)]
        return pieces

    def _head(self, shapes: tuple[tuple[int, ...], ...]) -> bytes:
        rows = (self.rows,)
        if odd := [want.spec.name for want, shape in zip(self.wanted, shapes, strict=True) if shape[:1] != rows]:
            self.model.scheduler.run_alone(odd)
        response = pb.ModelInferResponse(model_name=self.model.name, model_version=str(self.model.version))
        for want, shape in zip(self.wanted, shapes, strict=True):
            spec = want.spec
            response.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=spec.seen(shape))
        return response.SerializeToString()


class Plans:
    """The plans of a server by the heads of their requests."""

    def __init__(self) -> None:
        self._plans: dict[bytes, RequestPlan] = {}
        #: Length of a request without its id -> the lengths that its head may have.
        self._lengths: dict[int, tuple[int, ...]] = {}

    def find(self, data: bytes) -> tuple[RequestPlan, bytes] | None:
        """The plan for the request ``data``, and the field of its id, empty where it has none; None without a plan."""
        start, end = find_id(data)
        size = len(data) - end + start
        for length in self._lengths.get(size, ()):
            if start == end:
                plan = self._plans.get(data[:length])
            else:
                plan = self._plans.get(data[:start] + data[end : length + end - start])
            # another head of the same length may have led here, with numbers of another size behind it
            if plan is not None and plan.size == size and (identifier := data[start:end]).isascii():
                for at, between in plan.between:
                    if not data.startswith(between, at + end - start):
                        return None
                return plan, identifier
        return None

    def forget(self) -> None:
        """Drop all plans, because the models have changed."""
        self._plans.clear()
        self._lengths.clear()

    def drop(self, model: Model) -> None:
        """Drop the plans of ``model``, which was unloaded."""
        self._plans = {head: plan for head, plan in self._plans.items() if plan.model is not model}
        lengths: dict[int, set[int]] = {}
        for head, plan in self._plans.items():
            lengths.setdefault(plan.size, set()).add(len(head))
        self._lengths = {size: tuple(each) for size, each in lengths.items()}

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
        """Make a plan from a request that was checked and answered, if its form allows one."""
        if len(request.parameters) > PARAMETERS:
            return
        found = parts(data)
        if found is None or any(w.classes or w.typed or w.region or w.spec.datatype is BYTES for w in wanted):
            return
        start, end = find_id(data)
        if found.id != (start, end) and (start < end or found.id[0] < found.id[1]):
            return  # the id is long, or not at its usual place
        shift = end - start
        planned = []
        for tensor, span in zip(request.inputs, found.spans, strict=False):
            datatype, array = model.contract.inputs[tensor.name].datatype, feeds[tensor.name]
            if datatype in (BOOL, BYTES) or not array.size or "shared_memory_region" in tensor.parameters:
                return
            if tensor.HasField("contents"):
                return
            planned.append(PlannedInput(tensor.name, datatype.dtype, array.shape, span[0] - shift, span[1] - shift))
        if len(found.spans) != len(request.inputs) or found.spans[0][0] - shift > HEAD_BYTES:
            return
        head = data[:start] + data[end : found.spans[0][0]]
        lengths = self._lengths.get(len(data) - shift, ())
        if len(head) not in lengths:
            if len(lengths) >= HEADS:
                return
            lengths = (*lengths, len(head))
        if len(self._plans) >= LIMIT:
            self.forget()
            lengths = (len(head),)
        between = [(before - shift, data[before:after]) for (_, before), (after, _) in itertools.pairwise(found.spans)]
        run_time = model.scheduler.times.of(feeds)
        self._lengths[len(data) - shift] = lengths
        self._plans[head] = RequestPlan(model, len(data) - shift, planned, between, rows, wanted, parameters, run_time)
