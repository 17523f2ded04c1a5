"""The counters of a model version: counts and nanoseconds, as ModelStatistics reports them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from normfold.protos import grpc_service as pb


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count ``count`` more times that took ``ns`` nanoseconds together."""
        self.count += count
        self.ns += ns

    def add_message(self, message: pb.StatisticDuration) -> None:
        """Add the counts of another process."""
        self.add(message.ns, message.count)

    def message(self) -> pb.StatisticDuration:
        """The counters as a message of the protocol."""
        return pb.StatisticDuration(count=self.count, ns=self.ns)


class RequestTiming(NamedTuple):
    """How the time of one request was spent, in nanoseconds."""

    queue: int = 0
    input: int = 0
    infer: int = 0
    output: int = 0


@dataclass(slots=True)
class BatchStatistics:
    """The runs of one batch size."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)


class Statistics:
    """The counters of one model version; used from the event loop only."""

    def __init__(self) -> None:
        self.success, self.fail = Duration(), Duration()
        self.queue, self.input, self.infer, self.output = Duration(), Duration(), Duration(), Duration()
        self.cache_hit, self.cache_miss = Duration(), Duration()
        self.batches: dict[int, BatchStatistics] = {}
        #: By time.perf_counter_ns, which is faster to read than the time of day; 0: never.
        self.last_inference_ns = 0
        self._last_elsewhere_ms = 0
        self.inferences = 0
        self.executions = 0

    def ran(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count one run of the model with ``rows`` rows."""
        self.executions += 1
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchStatistics()
        batch.input.add(input_ns)
        batch.infer.add(infer_ns)
        batch.output.add(output_ns)

    def answered(self, rows: int, total_ns: int, timing: RequestTiming) -> None:
        """Count one request that the model answered."""
        self.last_inference_ns = time.perf_counter_ns()
        self.inferences += rows
        self.success.add(total_ns)
        self.queue.add(timing.queue)
        self.input.add(timing.input)
        self.infer.add(timing.infer)
        self.output.add(timing.output)

    def answered_at_once(self, rows: int, started: int, read: int, ran: int, ended: int) -> None:
        """Count one run and the one request that it answered.

        By time.perf_counter_ns, the request came at ``started``, its inputs were read at ``read``, the run ended at
        ``ran``, and the response was complete at ``ended``.
        """
        infer = ran - read
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchStatistics()
        batch.input.count += 1
        batch.infer.count += 1
        batch.infer.ns += infer
        batch.output.count += 1
        self.executions += 1
        self.inferences += rows
        self.last_inference_ns = ended
        self.success.count += 1
        self.success.ns += ended - started
        self.queue.count += 1
        self.input.count += 1
        self.input.ns += read - started
        self.infer.count += 1
        self.infer.ns += infer
        self.output.count += 1
        self.output.ns += ended - ran

    def answered_from_cache(self, rows: int, total_ns: int) -> None:
        """Count one request that the response cache answered."""
        self.last_inference_ns = time.perf_counter_ns()
        self.inferences += rows
        self.success.add(total_ns)
        self.cache_hit.add(total_ns)

    def add(self, message: pb.ModelStatistics) -> None:
        """Add the counts of another process for the same model."""
        self._last_elsewhere_ms = max(self._last_elsewhere_ms, message.last_inference)
        self.inferences += message.inference_count
        self.executions += message.execution_count
        theirs = message.inference_stats
        self.success.add_message(theirs.success)
        self.fail.add_message(theirs.fail)
        self.queue.add_message(theirs.queue)
        self.input.add_message(theirs.compute_input)
        self.infer.add_message(theirs.compute_infer)
        self.output.add_message(theirs.compute_output)
        self.cache_hit.add_message(theirs.cache_hit)
        self.cache_miss.add_message(theirs.cache_miss)
        for each in message.batch_stats:
            batch = self.batches.setdefault(each.batch_size, BatchStatistics())
            batch.input.add_message(each.compute_input)
            batch.infer.add_message(each.compute_infer)
            batch.output.add_message(each.compute_output)

    def message(self, name: str, version: str) -> pb.ModelStatistics:
        """The counters as a message of the protocol."""
        stats = pb.InferStatistics(
            success=self.success.message(),
            fail=self.fail.message(),
            queue=self.queue.message(),
            compute_input=self.input.message(),
            compute_infer=self.infer.message(),
            compute_output=self.output.message(),
            cache_hit=self.cache_hit.message(),
            cache_miss=self.cache_miss.message(),
        )
        batches = [
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=batch.input.message(),
                compute_infer=batch.infer.message(),
                compute_output=batch.output.message(),
            )
            for rows, batch in sorted(self.batches.items())
        ]
        return pb.ModelStatistics(
            name=name,
            version=version,
            last_inference=self._last_inference_ms(),
            inference_count=self.inferences,
            execution_count=self.executions,
            inference_stats=stats,
            batch_stats=batches,
        )

    def _last_inference_ms(self) -> int:
        """The time of the last inference, here or elsewhere, in milliseconds since the epoch; 0: never."""
        if not self.last_inference_ns:
            return self._last_elsewhere_ms
        here = (time.time_ns() - time.perf_counter_ns() + self.last_inference_ns) // 1_000_000
        return max(here, self._last_elsewhere_ms)
