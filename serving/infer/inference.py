"""ModelInfer: from the serialized request to the serialized response, which is counted and, if asked for, traced."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from normfold.protos import grpc_service as pb
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.model import Model
from normfold.serving.errors import InvalidRequest, QueueFull
from normfold.serving.infer.inputs import gather, read_inputs
from normfold.serving.infer.outputs import Wanted, wanted_outputs, write_outputs
from normfold.serving.infer.parameters import RequestParameters, read_parameters
from normfold.serving.infer.plans import Plans, RequestPlan
from normfold.serving.infer.shared_memory import SharedMemory
from normfold.serving.infer.tracing import TraceSettings
from normfold.serving.rpc.methods import parse, status_alone
from normfold.serving.scheduling.statistics import RequestTiming
from normfold.serving.wire.request_bytes import id_text
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

    def __init__(self, catalog: Catalog, regions: SharedMemory, traces: TraceSettings) -> None:
        self._catalog, self._regions, self._traces = catalog, regions, traces
        self._plans = Plans()
        catalog.on_change(self._plans.forget)

    def answer(self, data: bytes) -> bytes | Awaitable[bytes]:
        """The serialized response to the serialized request ``data``, or an awaitable of it where something must wait.

        This call and the awaitable raise InvalidRequest, NotFound or Unavailable.
        """
        started = time.perf_counter_ns()
        found = self._plans.find(data)
        if found is None:
            return self._answer_checked(data)
        plan, identifier = found
        model = plan.model
        if model.cache is not None or not model.scheduler.may_run_now(plan.run_time) or self._traces.active:
            return self._answer_planned(plan, data, identifier, started)
        try:
            response, read, ran = plan.run(data, identifier)
        except Exception:  # the ordinary path fails in the same way, and reports the reason
            return self._answer_checked(data)
        plan.run_time.note(ran - read)
        model.statistics.answered_at_once(plan.rows, started, read, ran, time.perf_counter_ns())
        return response

    async def _answer_checked(self, data: bytes) -> bytes:
        """The answer to a request without a plan; the next request like it may have one."""
        request = parse(pb.ModelInferRequest, data)
        checked, response = await self._infer(request)
        model = checked.model
        if self._catalog.find(model.name, request.model_version) is model:  # the model was not replaced during the run
            self._plans.keep(data, request, *checked)
        return response.SerializeToString()

    async def _answer_planned(self, plan: RequestPlan, data: bytes, identifier: bytes, started: int) -> bytes:
        model, parameters, request_id = plan.model, plan.parameters, id_text(identifier)
        feeds = plan.feeds(data, len(identifier))
        read = time.perf_counter_ns()
        try:
            arrays, timing = await _run(model, feeds, plan.rows, plan.outputs, parameters, request_id)
        except BaseException as error:
            model.statistics.failed(time.perf_counter_ns() - started, status_alone(error))
            raise
        answered = time.perf_counter_ns()
        response = plan.response(arrays, identifier)
        self._count(model, plan.rows, timing, request_id, started, read, answered)
        return response

    async def _infer(self, request: pb.ModelInferRequest) -> tuple[Checked, pb.ModelInferResponse]:
        started = time.perf_counter_ns()
        model = self._catalog.find(request.model_name, request.model_version)
        try:
            checked = self._check(request, model)
            read = time.perf_counter_ns()
            names = [want.spec.name for want in checked.wanted]
            arrays, timing = await _run(model, checked.feeds, checked.rows, names, checked.parameters, request.id)
            answered = time.perf_counter_ns()
            response = pb.ModelInferResponse(model_name=model.name, model_version=str(model.version), id=request.id)
            write_outputs(response, checked.wanted, arrays, model.contract.max_batch_size > 0, self._regions)
        except BaseException as error:
            model.statistics.failed(time.perf_counter_ns() - started, status_alone(error))
            raise
        self._count(model, checked.rows, timing, request.id, started, read, answered)
        return checked, response

    def _check(self, request: pb.ModelInferRequest, model: Model) -> Checked:
        parameters = read_parameters(request.parameters)
        contents = gather(request, model.name, self._regions)
        wanted = wanted_outputs(request, model.name, model.contract, parameters.typed)
        for want in wanted:
            if want.region:
                self._regions.check(*want.region)
        feeds, rows = read_inputs(request, contents, model.name, model.contract)
        return Checked(model, feeds, rows, wanted, parameters)

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
    except (QueueFull, InvalidRequest) as error:
        raise type(error)(f"{RequestPrefix(request_id)}{error}") from error
