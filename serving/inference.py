"""ModelInfer: from a serialized request to the serialized response, and the counters that follow it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from normfold.protos import grpc_service as pb
from normfold.serving.catalog import Catalog
from normfold.serving.errors import InvalidRequest, QueueFull
from normfold.serving.inputs import gather, read_inputs
from normfold.serving.model import Model
from normfold.serving.outputs import Wanted, wanted_outputs, write_outputs
from normfold.serving.parameters import RequestParameters, read_parameters
from normfold.serving.plans import Plan, Plans, parts
from normfold.serving.rpc import parse
from normfold.serving.shared_memory import SharedMemory
from normfold.serving.statistics import Timing
from normfold.serving.tracing import TraceSettings
from normfold.serving.wording import request_id

Array = NDArray[Any]


class Checked(NamedTuple):
    """A request that its model can answer."""

    model: Model
    feeds: dict[str, Array]
    rows: int
    wanted: list[Wanted]
    parameters: RequestParameters


class Inference:
    """Asks the models of a catalog."""

    def __init__(self, catalog: Catalog, regions: SharedMemory, traces: TraceSettings) -> None:
        self._catalog, self._regions, self._traces = catalog, regions, traces
        self._plans = Plans()
        catalog.on_change(self._plans.forget)

    def answer(self, data: bytes) -> bytes | Awaitable[bytes]:
        """The serialized response to a serialized request: at once where nothing has to wait, else to be awaited.

        Raises InvalidRequest, NotFound or Unavailable, as does what is awaited.
        """
        started = time.perf_counter_ns()
        if (found := parts(data)) is None or (plan := self._plans.find(found.head)) is None:
            return self._answer_checked(data, None if found is None else found.head)
        feeds = plan.feeds(data, found.spans)
        if feeds is None:
            return self._answer_checked(data, None)
        read = time.perf_counter_ns()
        try:
            ran = plan.model.infer_now(feeds, plan.rows, plan.outputs)
        except Exception:  # the long way fails again, and says why
            return self._answer_checked(data, None)
        if ran is None:
            return self._answer_planned(plan, feeds, found.id, started, read)
        return self._finish(plan, *ran, found.id, started, read)

    async def _answer_checked(self, data: bytes, head: bytes | None) -> bytes:
        """The answer to a request of which nothing is known yet; the next one with this head will have a plan."""
        request = parse(pb.ModelInferRequest, data)
        checked, response = await self._infer(request)
        model = checked.model
        if head is not None and self._catalog.find(model.name, request.model_version) is model:
            self._plans.keep(head, request, *checked)
        return response.SerializeToString()

    async def _answer_planned(
        self, plan: Plan, feeds: dict[str, Array], identifier: bytes, started: int, read: int
    ) -> bytes:
        model, parameters = plan.model, plan.parameters
        try:
            arrays, timing = await _run(model, feeds, plan.rows, plan.outputs, parameters, identifier.decode())
        except BaseException:
            model.statistics.fail.add(time.perf_counter_ns() - started)
            raise
        return self._finish(plan, arrays, timing, identifier, started, read)

    def _finish(
        self, plan: Plan, arrays: list[Array], timing: Timing | None, identifier: bytes, started: int, read: int
    ) -> bytes:
        answered = time.perf_counter_ns()
        response = plan.response(arrays, identifier)
        self._count(plan.model, plan.rows, timing, identifier, started, read, answered)
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
        except BaseException:
            model.statistics.fail.add(time.perf_counter_ns() - started)
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
        timing: Timing | None,
        identifier: str | bytes,
        started: int,
        read: int,
        answered: int,
    ) -> None:
        ended = time.perf_counter_ns()
        if timing is None:
            model.statistics.answered_from_cache(rows, ended - started)
        else:
            timing = Timing(timing.queue, timing.input + read - started, timing.infer, timing.output + ended - answered)
            model.statistics.answered(rows, ended - started, timing)
        if self._traces.active:
            identifier = identifier if isinstance(identifier, str) else identifier.decode()
            self._traces.record(model.name, model.version, identifier, started, read, timing, ended)


async def _run(
    model: Model,
    feeds: dict[str, Array],
    rows: int,
    outputs: Sequence[str],
    parameters: RequestParameters,
    identifier: str,
) -> tuple[list[Array], Timing | None]:
    try:
        return await model.infer(feeds, rows, outputs, parameters.priority, parameters.timeout_us)
    except (QueueFull, InvalidRequest) as error:
        raise type(error)(f"{request_id(identifier)}{error}") from error
