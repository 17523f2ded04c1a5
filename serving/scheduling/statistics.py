"""The counters of a model version: counts and nanoseconds, as ModelStatistics reports them, and histograms for metrics.

The histograms have a bucket for each power of two: the number of bits of a duration in nanoseconds is its bucket, and
finding it costs less than any search.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

from normfold.protos import grpc_service as pb
from normfold.protos import metrics as mx
from normfold.serving.errors import Status

#: The buckets of a histogram: durations of 0 to 63 bits, in nanoseconds.
BUCKETS = 64


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one more time, which took ``ns`` nanoseconds."""
        self.count += 1
        self.ns += ns

    def add_message(self, message: pb.StatisticDuration) -> None:
        """Add the counts of another process."""
        self.count += message.count
        self.ns += message.ns

    def message(self) -> pb.StatisticDuration:
        """The counters as a message of the protocol."""
        return pb.StatisticDuration(count=self.count, ns=self.ns)


@dataclass(slots=True)
class Spread(Duration):
    """A Duration with a histogram: how often it was of how many bits."""

    buckets: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    def add(self, ns: int) -> None:
        """Count one more time, which took ``ns`` nanoseconds."""
        self.count += 1
        self.ns += ns
        self.buckets[ns.bit_length()] += 1

    def add_spread(self, message: mx.Histogram) -> None:
        """Add the histogram of another process."""
        for bits, count in enumerate(message.counts):
            self.buckets[bits] += count

    def spread(self) -> mx.Histogram:
        """The histogram as a message, without the empty buckets at its end."""
        used = max((bits + 1 for bits, count in enumerate(self.buckets) if count), default=0)
        return mx.Histogram(counts=self.buckets[:used])


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
        self.success, self.fail = Spread(), Duration()
        self.queue, self.input, self.infer, self.output = Spread(), Spread(), Spread(), Spread()
        #: Requests that failed, by gRPC status.
        self.failures: dict[Status, int] = {}
        self.cache_hit, self.cache_miss = Duration(), Duration()
        self.batches: dict[int, BatchStatistics] = {}
        #: By time.perf_counter_ns, which is faster to read than the time of day; 0: never.
        self.last_inference_ns = 0
        self._last_elsewhere_ms = 0
        self.inferences = 0
        self.executions = 0

    def failed(self, ns: int, status: Status) -> None:
        """Count one request that took ``ns`` nanoseconds and failed with ``status``."""
        self.fail.add(ns)
        self.failures[status] = self.failures.get(status, 0) + 1

    def refused(self, requests: int) -> None:
        """Count requests that were refused at once because of an overload."""
        self.fail.count += requests
        self.failures[Status.RESOURCE_EXHAUSTED] = self.failures.get(Status.RESOURCE_EXHAUSTED, 0) + requests

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
        total, reading, infer, writing = ended - started, read - started, ran - read, ended - ran
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
        success, into, run, out = self.success, self.input, self.infer, self.output
        success.count += 1
        success.ns += total
        success.buckets[total.bit_length()] += 1
        self.queue.count += 1
        self.queue.buckets[0] += 1
        into.count += 1
        into.ns += reading
        into.buckets[reading.bit_length()] += 1
        run.count += 1
        run.ns += infer
        run.buckets[infer.bit_length()] += 1
        out.count += 1
        out.ns += writing
        out.buckets[writing.bit_length()] += 1

    def answered_from_cache(self, rows: int, total_ns: int) -> None:
        """Count one request that the response cache answered."""
        self.last_inference_ns = time.perf_counter_ns()
        self.inferences += rows
        self.success.add(total_ns)
        self.cache_hit.add(total_ns)

    def add_snapshot(self, message: mx.ModelSnapshot) -> None:
        """Add the counts and histograms of another process for the same model."""
        self.add(message.statistics)
        self.success.add_spread(message.request)
        self.queue.add_spread(message.queue)
        self.input.add_spread(message.input)
        self.infer.add_spread(message.infer)
        self.output.add_spread(message.output)
        for name, count in message.failures.items():
            self.failures[Status[name]] = self.failures.get(Status[name], 0) + count

    def snapshot(self, name: str, version: str) -> mx.ModelSnapshot:
        """The counters and histograms as a message."""
        return mx.ModelSnapshot(
            statistics=self.message(name, version),
            request=self.success.spread(),
            queue=self.queue.spread(),
            input=self.input.spread(),
            infer=self.infer.spread(),
            output=self.output.spread(),
            failures={status.name: count for status, count in self.failures.items()},
        )

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
