"""One version of a model in memory: its session, its contract, its queue, its counters and its cache of responses."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from numpy.typing import NDArray

from normfold.protos import metrics as mx
from normfold.protos import model_config as mc
from normfold.serving.catalog.contract import Contract
from normfold.serving.catalog.sized_run import KEPT_BYTES, SizedRun, check_room
from normfold.serving.process.memory_limit import MemoryBudget
from normfold.serving.process.off_loop import off_loop, work_bytes
from normfold.serving.runtime.gpus import Sessions
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.stop import stoppable
from normfold.serving.scheduling import batching
from normfold.serving.scheduling.inline import RunTimes
from normfold.serving.scheduling.response_cache import ResponseCache
from normfold.serving.scheduling.running import Run
from normfold.serving.scheduling.scheduler import Scheduler
from normfold.serving.scheduling.statistics import RequestTiming, Statistics
from normfold.serving.wording import quoted

log = logging.getLogger(__name__)

Array = NDArray[Any]

#: Inputs and answers with more work are digested and copied for the response cache on another thread.
LOOP_BYTES = 1 << 20


class Model:
    """A loaded, warm version of a model."""

    def __init__(
        self,
        name: str,
        version: int,
        settings: mc.ModelConfig,
        contract: Contract,
        session: Session,
        executor: Executor,
        times: RunTimes,
        others: Sequence[tuple[Session, int]] = (),
        sized: SizedRun | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        """``others`` are sessions on further GPUs, each with its number of instances.

        ``sized`` keeps runs within the server's memory, which is ``budget``; None: their memory is not known.
        """
        self.name, self.version, self.config, self.contract, self.session = name, version, settings, contract, session
        self.statistics = Statistics()
        #: The digest of the files that decide its answers, see ``load_files.digest``.
        self.digest = ""
        #: The digest of all files that its load read, see ``load_files.contents``.
        self.contents = ""
        #: The memory that it takes while nothing runs, in bytes; as far as it is known.
        self.memory_bytes = 0
        #: Requests that are read, run or written now, except those with a plan, which ``scheduler.load`` counts.
        self.in_use = 0
        self._made_ns = time.perf_counter_ns()
        instances = sum(group.count * max(1, len(group.gpus)) for group in settings.instance_group)
        #: Runs the model, on the least busy of its GPUs if it has several.
        self.run: Run = session.run if sized is None else sized
        self._sized, self._budget = sized, budget
        if others:
            here = instances - sum(count for _, count in others)
            self.run = Sessions([(session, here), *others]).run
        self.devices = [session.device, *(other.device for other, _ in others)]
        if settings.dynamic_batching.preserve_ordering:
            instances = 1
        policy = batching.read_policy(settings)
        warn = partial(_warn_alone, name, version)  # no method of ours: a model that is replaced is gone at once
        self.scheduler = Scheduler(
            self.run, policy, instances, executor, self.statistics, times, stoppable(self.run), warn
        )
        self.cache = ResponseCache() if settings.response_cache.enable else None

    async def infer(
        self, feeds: Mapping[str, Array], rows: int, outputs: Sequence[str], priority: int, timeout_us: int
    ) -> tuple[list[Array], RequestTiming | None]:
        """The outputs named in ``outputs``, and how the time was spent; None if the response cache answered.

        Raises NoMemory before anything is run, and what the scheduler raises.
        """
        if self._sized is not None:
            self._sized.check(feeds, rows)
        if self.cache is None:
            return await self.scheduler.submit(feeds, rows, outputs, priority, timeout_us)
        key = await off_loop(_is_large(feeds.values()), self.cache.key, feeds, outputs)
        if (answer := self.cache.find(key)) is not None:
            return answer, None
        started = time.perf_counter_ns()
        answer, timing = await self.scheduler.submit(feeds, rows, outputs, priority, timeout_us)
        if key not in self.cache:  # an equal request may have been faster
            self.cache.keep(key, await off_loop(_is_large(answer), self.cache.copied, answer))
        self.statistics.cache_miss.add(time.perf_counter_ns() - started - timing.queue - timing.infer)
        return answer, timing

    def check_room(self, size: int, what: str) -> None:
        """Raise NoMemory if ``what`` of ``size`` bytes is more than there is memory for, as far as that is known."""
        if self._sized is not None:
            self._sized.check_room(size, what)
        elif self._budget is not None and size > KEPT_BYTES:
            check_room(self._budget, size, what)

    @property
    def used_ns(self) -> int:
        """When it last answered or, before that, was loaded; by time.perf_counter_ns."""
        return max(self._made_ns, self.statistics.last_inference_ns)

    @property
    def idle(self) -> bool:
        """Whether no request for it is under way."""
        return not (self.in_use or self.scheduler.load.under_way.requests or self.scheduler.waiting)

    def snapshot(self) -> mx.ModelSnapshot:
        """Its counters, the requests that wait, and its devices."""
        one = self.statistics.snapshot(self.name, str(self.version))
        one.waiting, one.device = self.scheduler.waiting, ", ".join(self.devices)
        return one

    def give_back(self) -> None:
        """Give back the memory that is kept for the next run; for a server that is idle, and on a thread."""
        if self._sized is not None:
            self._sized.give_back()

    def describe(self) -> str:
        """One line for people: inputs, outputs, devices and threads."""
        takes = ", ".join(str(spec) for spec in self.contract.inputs.values())
        gives = ", ".join(str(spec) for spec in self.contract.outputs.values())
        threads = self.session.settings.intra_op_threads
        where = ", ".join(self.devices)
        if threads > 1:
            where += f", {threads} threads a run"
        if self.session.left_on_cpu:
            where += f", nodes on the CPU: {self.session.left_on_cpu}"
        return f"{self.name} version {self.version}: {takes} -> {gives} on {where}"


def _is_large(arrays: Iterable[Array]) -> bool:
    return sum([work_bytes(array) for array in arrays]) > LOOP_BYTES


def _warn_alone(name: str, version: int, outputs: Iterable[str]) -> None:
    log.warning(
        "model %s version %d: requests for %s run alone, because such an output does not have the rows of the inputs; "
        "if clients ask for it, set max_batch_size to 0 and remove dynamic_batching",
        quoted(name),
        version,
        ", ".join(map(quoted, outputs)),
    )
