"""ModelInfer: from the serialized request to the serialized response, which is counted and, if asked for, traced."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from normfold.protos import grpc_service as pb
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.model import Model
from normfold.serving.errors import InvalidRequest, Overloaded, QueueFull, ServingError
from normfold.serving.infer.inputs import gather, read_inputs, shared_bytes, unread_bytes
from normfold.serving.infer.large import class_bytes, is_large_answer
from normfold.serving.infer.outputs import Wanted, wanted_outputs, write_outputs
from normfold.serving.infer.parameters import RequestParameters, read_parameters
from normfold.serving.infer.plans import Plans, RequestPlan
from normfold.serving.infer.shared_memory import SharedMemory
from normfold.serving.infer.tracing import TraceSettings
from normfold.serving.process.off_loop import COPY_BYTES, off_loop
from normfold.serving.rpc.caller import CALLER, Caller, connection
from normfold.serving.rpc.methods import LOOP_BYTES, no_message, parse, status_alone
from normfold.serving.rpc.pieces import Answer
from normfold.serving.scheduling.admission import Admission
from normfold.serving.scheduling.statistics import RequestTiming
from normfold.serving.wire.bounded import check_fields
from normfold.serving.wire.lifted import Lifted, lift
from normfold.serving.wire.request_bytes import decisive_bytes, id_text, model_named
from normfold.serving.wording import RequestPrefix

Array = NDArray[Any]


class Checked(NamedTuple):
    """A request that was checked and that its model can answer."""

    model: Model
    feeds: dict[str, Array]
    rows: int
    wanted: list[Wanted]
    parameters: RequestParameters


class Inference:
    """Answers requests with the models of a catalog."""

    def __init__(
        self, catalog: Catalog, regions: SharedMemory, traces: TraceSettings, admission: Admission | None = None
    ) -> None:
        """``admission`` refuses requests that would have to wait too long; None: the default bounds."""
        self._catalog, self._regions, self._traces = catalog, regions, traces
        self._admission = Admission() if admission is None else admission
        self._plans = Plans()
        catalog.on_change(self._plans.forget)
        catalog.on_unload(self._plans.drop)

    def answer(self, data: bytes) -> bytes | asyncio.Task[Answer]:
        """The serialized response to the serialized request ``data``, or a task of it where something must wait.

        This call raises Overloaded; both it and the task raise InvalidRequest, NotFound, NoMemory or Unavailable.
        """
        started = time.perf_counter_ns()
        found = self._plans.find(data)
        if found is None:
            return self._later(self._named(data), data, lambda: self._answer_checked(data))
        plan, identifier = found
        model = plan.model
        if model.cache is not None or not model.scheduler.may_run_first(plan.run_time) or self._traces.active:
            return self._later(model, data, lambda: self._answer_planned(plan, data, identifier, started))
        caller = CALLER.get()
        if caller is not None and (late := self._admission.late(caller.waited_seconds)) is not None:
            late.alike, late.again = decisive_bytes(data), model.statistics.refused
            model.statistics.failed(0, late.status)
            try:
                raise late
            finally:
                del late  # its traceback refers to this frame: a cycle that would keep the request in memory
        try:
            response, read, ran = plan.run(data, identifier)
        except Exception:  # the ordinary path fails in the same way, and reports the reason
            return self._later(model, data, lambda: self._answer_checked(data))
        model.scheduler.ran_now(plan.run_time, ran - read)
        model.statistics.answered_at_once(plan.rows, started, read, ran, time.perf_counter_ns())
        return response

    def door(self, head: bytes, size: int) -> None:
        """Raise Overloaded where a request of ``size`` bytes, of which ``head`` are the first, would be refused now.

        While the model has a free instance nothing is refused: the request may be answered at once.
        """
        if (model := self._named(head)) is not None and not model.scheduler.free:
            self._check_door(model, head, size, CALLER.get())

    def _later(
        self, model: Model | None, data: bytes, answer: Callable[[], Coroutine[None, None, Answer]]
    ) -> asyncio.Task[Answer]:
        """A task of ``answer``, if the request may wait for ``model``. Raises Overloaded."""
        caller, size = CALLER.get(), len(data)
        by = None if caller is None else caller.connection
        load = None if model is None else model.scheduler.load
        self._check_door(model, data, size, caller)
        self._admission.enter(load, by, size)
        task = asyncio.get_running_loop().create_task(answer())
        task.add_done_callback(lambda _: self._admission.leave(load, by, size))
        return task

    def _check_door(self, model: Model | None, head: bytes, size: int, caller: Caller | None) -> None:
        """Raise Overloaded if a request of ``size`` bytes, of which ``head`` are the first, may not wait."""
        by, left = (None, None) if caller is None else (caller.connection, caller.left_seconds())
        error = self._refusal(model, head, size, left, by)
        if error is not None:
            if model is not None:
                model.statistics.failed(0, error.status)
            try:
                raise error
            finally:
                del error  # as in ``answer``

    def _refusal(
        self, model: Model | None, head: bytes, size: int, left: float | None, by: object
    ) -> Overloaded | None:
        error = self._admission.refusal(None if model is None else model.scheduler.load, by, size, left)
        if error is not None and model is not None and self._traces.spans is None:  # with spans each refusal has one
            error.alike, error.again = decisive_bytes(head), model.statistics.refused
            error.still = partial(self._still, head[: error.alike], size, left)
        return error

    def _still(self, head: bytes, size: int, left: float | None, by: object) -> Overloaded | None:
        """The refusal of one more request like one that was refused; None: ``_refusal`` may accept it now."""
        model = self._named(head)
        return None if model is None or model.scheduler.free else self._refusal(model, head, size, left, by)

    def _named(self, data: bytes) -> Model | None:
        """The model that ``data`` names, found without parsing it; None if it is not at its usual place, or unknown."""
        named = model_named(data)
        try:
            return None if named is None else self._catalog.find(*named)
        except ServingError:
            return None

    def _serves(self, model: Model, version: str) -> bool:
        """Whether ``model`` still answers requests for this version of it."""
        try:
            return self._catalog.find(model.name, version) is model
        except ServingError:
            return False

    async def _answer_checked(self, data: bytes) -> Answer:
        """The answer to a request without a plan; the next request like it may have one."""
        large = len(data) > LOOP_BYTES
        request, named, lifted = await off_loop(large, _parsed, data, large)
        checked, response = await self._infer(request, large, named, lifted)
        model = checked.model
        if self._serves(model, request.model_version):  # it was not replaced or unloaded during the run
            self._plans.keep(data, request, *checked)
        return response

    async def _answer_planned(self, plan: RequestPlan, data: bytes, identifier: bytes, started: int) -> Answer:
        model, parameters, request_id = plan.model, plan.parameters, id_text(identifier)
        try:
            feeds = await off_loop(len(data) > COPY_BYTES, plan.feeds, data, len(identifier))
            read = time.perf_counter_ns()
            arrays, timing = await _run(model, feeds, plan.rows, plan.outputs, parameters, request_id)
            answered = time.perf_counter_ns()
            large = sum([array.nbytes for array in arrays]) > COPY_BYTES
            response = await off_loop(large, plan.answer, arrays, identifier)
        except BaseException as error:
            model.statistics.failed(time.perf_counter_ns() - started, status_alone(error))
            raise
        self._count(model, plan.rows, timing, request_id, started, read, answered)
        return response

    async def _infer(
        self, request: pb.ModelInferRequest, large: bool, named: bool, lifted: Lifted
    ) -> tuple[Checked, Answer]:
        started = time.perf_counter_ns()
        model = await self._catalog.awake(request.model_name, request.model_version)
        model.in_use += 1  # the door has not counted it for the model if that was not loaded yet
        try:
            with contextlib.ExitStack() as held:
                long = large
                more, most = unread_bytes(request, model.contract, lifted)
                if named:
                    found = await off_loop(large, shared_bytes, request, model.contract, self._regions)
                    long = large or found[0] > COPY_BYTES or found[2] > LOOP_BYTES
                    more, most = more + found[0], most + found[1]
                if more:
                    model.check_room(most, "the inputs of this request")
                    held.enter_context(self._admission.more(model.scheduler.load, connection(), more))
                checked = await off_loop(long, self._check, request, model, lifted)
                read = time.perf_counter_ns()
                names = [want.spec.name for want in checked.wanted]
                arrays, timing = await _run(model, checked.feeds, checked.rows, names, checked.parameters, request.id)
                answered = time.perf_counter_ns()
                long = is_large_answer(checked.wanted, arrays)
                if long and (more := class_bytes(checked.wanted, arrays, model.contract.max_batch_size > 0)):
                    model.check_room(more, "the classes of this answer")
                    held.enter_context(self._admission.more(model.scheduler.load, connection(), more))
                response = await off_loop(long, self._written, request.id, model, checked.wanted, arrays)
        except BaseException as error:
            model.statistics.failed(time.perf_counter_ns() - started, status_alone(error))
            raise
        finally:
            model.in_use -= 1
        self._count(model, checked.rows, timing, request.id, started, read, answered)
        return checked, response

    def _check(self, request: pb.ModelInferRequest, model: Model, lifted: Lifted) -> Checked:
        parameters = read_parameters(request.parameters)
        contents = gather(request, model.name, self._regions, lifted)
        wanted = wanted_outputs(request, model.name, model.contract, parameters.typed)
        for want in wanted:
            if want.region:
                self._regions.check(*want.region)
        feeds, rows = read_inputs(request, contents, model.name, model.contract)
        return Checked(model, feeds, rows, wanted, parameters)

    def _written(self, request_id: str, model: Model, wanted: Sequence[Wanted], arrays: Sequence[Array]) -> Answer:
        response = pb.ModelInferResponse(model_name=model.name, model_version=str(model.version), id=request_id)
        return write_outputs(response, wanted, arrays, model.contract.max_batch_size > 0, self._regions)

    def _count(
        self,
        model: Model,
        rows: int,
        timing: RequestTiming | None,
        request_id: str,
        started: int,
        read: int,
        answered: int,
    ) -> None:
        ended = time.perf_counter_ns()
        if timing is None:
            model.statistics.answered_from_cache(rows, ended - started)
        else:
            timing = RequestTiming(
                timing.queue, timing.input + read - started, timing.infer, timing.output + ended - answered
            )
            model.statistics.answered(rows, ended - started, timing)
        if self._traces.active:
            self._traces.record(model.name, model.version, request_id, started, read, timing, ended)


def _parsed(data: bytes, large: bool) -> tuple[pb.ModelInferRequest, bool, Lifted]:
    """The request in ``data``, whether it may name shared memory for an input, and what ``lift`` took out of it.

    Raises InvalidRequest.
    """
    if large:
        try:
            check_fields(data, pb.ModelInferRequest.DESCRIPTOR)
            rest, lifted = lift(data)
            request = pb.ModelInferRequest.FromString(rest)
        except (DecodeError, ValueError):
            raise no_message(pb.ModelInferRequest, len(data)) from None
    else:
        request, lifted = parse(pb.ModelInferRequest, data), Lifted()
    return request, any(tensor.parameters for tensor in request.inputs), lifted


async def _run(
    model: Model,
    feeds: dict[str, Array],
    rows: int,
    outputs: Sequence[str],
    parameters: RequestParameters,
    request_id: str,
) -> tuple[list[Array], RequestTiming | None]:
    try:
        return await model.infer(feeds, rows, outputs, parameters.priority, parameters.timeout_us)
    except InvalidRequest as error:
        raise InvalidRequest(f"{RequestPrefix(request_id)}{error}") from error
    except QueueFull as error:
        raise QueueFull(f"{RequestPrefix(request_id)}{error}", error.retry_seconds) from error
