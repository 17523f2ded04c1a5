"""From a snapshot of the counters to Prometheus's text format.

The metrics ``nv_*`` have the names, labels and units of Triton, so that its dashboards work here. Those with
``normfold_`` are what Triton has not: histograms, failures by gRPC status, the versions in service.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from normfold.protos import grpc_service as pb
from normfold.protos import metrics as mx

#: The Content-Type of the format.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: The buckets that are shown, as bits of a duration in nanoseconds: 2^13 ns are 8 us, 2^35 ns are 34 s.
SHOWN_BITS = range(13, 36)

#: gRPC status -> the reason of a failure in Triton's words; others are OTHER.
REASONS = {
    "RESOURCE_EXHAUSTED": "REJECTED",
    "UNAVAILABLE": "REJECTED",
    "DEADLINE_EXCEEDED": "REJECTED",
    "CANCELLED": "CANCELED",
    "INTERNAL": "BACKEND",
}

_LABELS = ("model", "version")


def text(snapshot: mx.SnapshotResponse, ready: bool) -> bytes:
    """``snapshot`` in Prometheus's text format; ``ready`` is whether the server is ready."""
    metrics = _Collected([*_triton(snapshot), *_ours(snapshot, ready)])
    written: bytes = generate_latest(metrics)  # of a registry it takes nothing but collect()
    # The library writes "_total" behind every counter's name, and Triton does not. So Triton's counters are of unknown
    # type for the library, and get their type here; nothing else is of unknown type.
    return written.replace(b" untyped\n", b" counter\n")


class _Collected:
    """Metrics as the library takes them: from the ``collect`` of a registry."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def _triton(snapshot: mx.SnapshotResponse) -> Iterator[Metric]:
    """Triton's metrics of models (its user guide, "Metrics")."""
    shown: dict[str, tuple[str, Callable[[pb.ModelStatistics], int]]] = {
        "request_success": ("Requests that were answered", lambda s: s.inference_stats.success.count),
        "count": ("Rows that were answered; a request has as many as its batch dimension", lambda s: s.inference_count),
        "exec_count": ("Runs of the model; requests that ran together count once", lambda s: s.execution_count),
        "request_duration_us": ("Time of answered requests", lambda s: s.inference_stats.success.ns // 1000),
        "queue_duration_us": ("Their time in the queue", lambda s: s.inference_stats.queue.ns // 1000),
        "compute_input_duration_us": ("Their time for inputs", lambda s: s.inference_stats.compute_input.ns // 1000),
        "compute_infer_duration_us": ("Their time for runs", lambda s: s.inference_stats.compute_infer.ns // 1000),
        "compute_output_duration_us": ("Their time for outputs", lambda s: s.inference_stats.compute_output.ns // 1000),
    }
    for name, (help_text, value) in shown.items():
        metric = _counter(f"nv_inference_{name}", help_text)
        for one in snapshot.models:
            metric.add_sample(metric.name, _labels(one), value(one.statistics))
        yield metric
    failed = _counter("nv_inference_request_failure", "Requests that failed, by Triton's reasons")
    for one in snapshot.models:
        reasons: dict[str, int] = dict.fromkeys([*REASONS.values(), "OTHER"], 0)
        for status, count in one.failures.items():
            reasons[REASONS.get(status, "OTHER")] += count
        for reason, count in reasons.items():
            failed.add_sample(failed.name, {**_labels(one), "reason": reason}, count)
    yield failed
    pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests that wait for a run", labels=_LABELS)
    for one in snapshot.models:
        pending.add_metric(list(_labels(one).values()), one.waiting)
    yield pending


def _counter(name: str, documentation: str) -> Metric:
    """A counter of Triton's, whose name the library must not change."""
    return Metric(name, documentation, "unknown")


def _ours(snapshot: mx.SnapshotResponse, ready: bool) -> Iterator[Metric]:
    yield InfoMetricFamily("normfold_build", "The versions of this server", value=dict(versions()))
    yield GaugeMetricFamily("normfold_ready", "1 while the server is ready, else 0", value=float(ready))
    yield GaugeMetricFamily("normfold_workers", "Processes that answer", value=len(snapshot.processes))
    memory = GaugeMetricFamily("normfold_resident_bytes", "Memory of a process in RAM", labels=["worker"])
    cpu = CounterMetricFamily("normfold_cpu_seconds", "CPU time of a process since it started", labels=["worker"])
    for process in snapshot.processes:
        memory.add_metric([str(process.worker)], process.resident_bytes)
        cpu.add_metric([str(process.worker)], process.cpu_seconds)
    yield from (memory, cpu)
    loaded = InfoMetricFamily("normfold_model", "A version in service and its devices", labels=_LABELS)
    failures = CounterMetricFamily(
        "normfold_request_failures", "Requests that failed, by gRPC status", labels=[*_LABELS, "status"]
    )
    for one in snapshot.models:
        loaded.add_metric(list(_labels(one).values()), {"device": one.device})
        for status, count in sorted(one.failures.items()):
            failures.add_metric([*_labels(one).values(), status], count)
    yield from (loaded, failures)
    calls = CounterMetricFamily(
        "normfold_call_failures", "Calls that did not end with OK; method is empty for unknown methods and for calls "
        "that were refused by their headers", labels=["method", "status"]
    )  # fmt: skip
    for row in snapshot.failed_calls:
        calls.add_metric([row.method, row.status], row.count)
    yield calls
    yield _durations(snapshot)
    yield _batches(snapshot)


def _durations(snapshot: mx.SnapshotResponse) -> Metric:
    metric = HistogramMetricFamily(
        "normfold_request_duration_seconds",
        "Time of answered requests by phase: request is the whole, the others are its parts",
        labels=[*_LABELS, "phase"],
    )
    for one in snapshot.models:
        stats = one.statistics.inference_stats
        phases = {
            "request": (one.request, stats.success.ns),
            "queue": (one.queue, stats.queue.ns),
            "input": (one.input, stats.compute_input.ns),
            "infer": (one.infer, stats.compute_infer.ns),
            "output": (one.output, stats.compute_output.ns),
        }
        for phase, (histogram, ns) in phases.items():
            metric.add_metric([*_labels(one).values(), phase], _buckets(histogram), ns / 1e9)
    return metric


def _buckets(histogram: mx.Histogram) -> list[tuple[str, float]]:
    """The cumulative buckets: durations of at most k bits are shorter than 2^k nanoseconds."""
    upto = [*accumulate(histogram.counts)] or [0]
    shown = [(repr(2**bits / 1e9), float(upto[min(bits, len(upto) - 1)])) for bits in SHOWN_BITS]
    return [*shown, ("+Inf", float(upto[-1]))]


def _batches(snapshot: mx.SnapshotResponse) -> Metric:
    metric = HistogramMetricFamily("normfold_batch_rows", "Rows of a run", labels=_LABELS)
    for one in snapshot.models:
        runs = {each.batch_size: each.compute_infer.count for each in one.statistics.batch_stats}
        most = max(runs, default=1)
        bounds = [2**k for k in range((most - 1).bit_length() + 1)]
        cumulative = [
            (repr(float(bound)), float(sum(n for rows, n in runs.items() if rows <= bound))) for bound in bounds
        ]
        total = float(sum(runs.values()))
        metric.add_metric(
            list(_labels(one).values()), [*cumulative, ("+Inf", total)], sum(r * n for r, n in runs.items())
        )
    return metric


def _labels(one: mx.ModelSnapshot) -> dict[str, str]:
    return {"model": one.statistics.name, "version": one.statistics.version}


def versions() -> Mapping[str, str]:
    """The versions of normfold and of what it runs on, by name."""
    found = {"python": platform.python_version()}
    for package in ("normfold", "onnxruntime", "onnxruntime-gpu"):
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            continue
    return found
