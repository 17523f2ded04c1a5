"""A snapshot as Prometheus's text: read again by the official parser, it has the numbers of the snapshot."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from normfold.protos import metrics as mx
from normfold.serving.errors import Status
from normfold.serving.metrics import exposition
from normfold.serving.scheduling.statistics import RequestTiming, Statistics


def counted() -> Statistics:
    made = Statistics()
    for rows, infer in ((1, 5_000), (1, 100_000), (3, 20_000_000)):
        made.ran(rows, 0, infer, 0)
        made.answered(rows, infer + 3_000, RequestTiming(1_000, 500, infer, 1_500))
    made.answered_at_once(2, 10_000, 11_000, 41_000, 42_000)
    made.failed(7_000, Status.INVALID_ARGUMENT)
    made.failed(9_000, Status.UNAVAILABLE)
    return made


def plain(name: str) -> str:
    """The name as it is in the text: the parser writes "_total" behind every counter's name, and Triton does not."""
    return name.removesuffix("_total") if name.startswith("nv_") else name


@pytest.fixture
def samples() -> dict[tuple[str, frozenset], float]:
    """Name and labels -> value, as the official parser reads them."""
    one = counted().snapshot('quo"te\n', "1")
    one.waiting, one.device = 5, "cpu"
    snapshot = mx.SnapshotResponse(
        models=[one],
        failed_calls=[mx.FailedCalls(method="inference.GRPCInferenceService/ModelInfer", status="NOT_FOUND", count=4)],
        processes=[mx.ProcessSnapshot(worker=1, resident_bytes=100, cpu_seconds=1.5)],
    )
    text = exposition.text(snapshot, True).decode()
    assert "\nnv_inference_request_success{" in text
    families = list(text_string_to_metric_families(text))
    types = {family.name: family.type for family in families}
    assert types["nv_inference_request_success"] == "counter"
    assert types["nv_inference_pending_request_count"] == "gauge"
    assert types["normfold_request_duration_seconds"] == "histogram"
    assert "unknown" not in types.values()
    return {(plain(s.name), frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def of(**labels: str) -> frozenset:
    return frozenset({"model": 'quo"te\n', "version": "1", **labels}.items())


def test_triton_s_counters_have_triton_s_names_and_units(samples):
    assert samples["nv_inference_request_success", of()] == 4
    assert samples["nv_inference_count", of()] == 7
    assert samples["nv_inference_exec_count", of()] == 4
    assert samples["nv_inference_request_duration_us", of()] == (5_000 + 100_000 + 20_000_000 + 9_000 + 32_000) // 1000
    assert samples["nv_inference_queue_duration_us", of()] == 3
    assert samples["nv_inference_compute_infer_duration_us", of()] == 20_135
    assert samples["nv_inference_pending_request_count", of()] == 5
    assert samples["nv_inference_request_failure", of(reason="OTHER")] == 1
    assert samples["nv_inference_request_failure", of(reason="REJECTED")] == 1
    assert samples["nv_inference_request_failure", of(reason="CANCELED")] == 0


def test_histograms_have_every_request_in_the_right_bucket(samples):
    def upto(phase: str, seconds: float) -> float:
        name = "normfold_request_duration_seconds_bucket"
        return samples[name, of(phase=phase, le=repr(seconds))]

    assert samples["normfold_request_duration_seconds_count", of(phase="infer")] == 4
    assert samples["normfold_request_duration_seconds_sum", of(phase="infer")] == pytest.approx(20_135e-6)
    assert upto("infer", 2**13 / 1e9) == 1
    assert upto("infer", 2**15 / 1e9) == 2
    assert upto("infer", 2**17 / 1e9) == 3
    assert upto("infer", 2**24 / 1e9) == 3
    assert upto("infer", 2**25 / 1e9) == 4
    assert upto("queue", 2**13 / 1e9) == 4
    assert samples["normfold_batch_rows_bucket", of(le="1.0")] == 2
    assert samples["normfold_batch_rows_bucket", of(le="2.0")] == 3
    assert samples["normfold_batch_rows_bucket", of(le="4.0")] == 4
    assert samples["normfold_batch_rows_sum", of()] == 7


def test_failures_devices_and_processes_are_there(samples):
    assert samples["normfold_request_failures_total", of(status="INVALID_ARGUMENT")] == 1
    method = {"method": "inference.GRPCInferenceService/ModelInfer", "status": "NOT_FOUND"}
    assert samples["normfold_call_failures_total", frozenset(method.items())] == 4
    assert samples["normfold_model_info", of(device="cpu")] == 1
    assert samples["normfold_ready", frozenset()] == 1
    assert samples["normfold_workers", frozenset()] == 1
    assert samples["normfold_resident_bytes", frozenset({("worker", "1")})] == 100


def test_an_empty_server_and_a_model_without_requests_are_no_error():
    one = Statistics().snapshot("m", "1")
    for snapshot in (mx.SnapshotResponse(), mx.SnapshotResponse(models=[one])):
        text = exposition.text(snapshot, False).decode()
        assert list(text_string_to_metric_families(text))
        assert "normfold_ready 0.0" in text
