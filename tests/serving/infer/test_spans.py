"""Spans reach a collector over OTLP: parents, links, times and statuses; without an endpoint nothing is imported."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.infer import otlp

TRACE, ABOVE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
BATCHED = """
max_batch_size: 8
dynamic_batching { preferred_batch_size: 2 max_queue_delay_microseconds: 20000000 }
instance_group { count: 1 kind: KIND_CPU }
"""


@pytest.fixture
def collector(monkeypatch):
    """A collector on a free port, to which servers of this process send their spans; what it got."""
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    got = []

    def export(request, context):
        got.append(request)
        return service.ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export, service.ExportTraceServiceRequest.FromString, lambda answer: answer.SerializeToString()
    )
    server = grpc.server(ThreadPoolExecutor(2))
    name = "opentelemetry.proto.collector.trace.v1.TraceService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, {"Export": handler})])
    monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    server.start()
    yield got
    server.stop(0)


def spans(got) -> dict[str, list]:
    found: dict[str, list] = {}
    for request in got:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    found.setdefault(span.name, []).append(span)
    return found


def attributes(span) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def call(one, request, *, flags="01"):
    return one.infer(request, metadata=(("traceparent", f"00-{TRACE}-{ABOVE}-{flags}"), ("tracestate", "a=b")))


def test_a_request_is_a_span_below_that_of_its_caller(serve, tmp_path, models, ask, frontend, collector):
    models.write(tmp_path / "m", models.scale())
    with serve(tmp_path, frontend=frontend) as one:
        request = ask("m")
        request.id = "question 7"
        for _ in range(3):  # the later ones are planned requests
            call(one, request)
        call(one, request, flags="00")  # its caller does not sample it
        request.inputs[0].shape[:] = [1, 3]
        with pytest.raises(grpc.RpcError):
            call(one, request)
        stream = one.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        list(stream(iter([ask("m")]), timeout=60, metadata=[("traceparent", f"00-{TRACE}-{ABOVE}-01")]))
    found = spans(collector)
    requests = found["inference.GRPCInferenceService/ModelInfer"]
    assert len(requests) == 4
    (streamed,) = found["inference.GRPCInferenceService/ModelStreamInfer"]
    assert {(s.trace_id.hex(), s.parent_span_id.hex(), s.trace_state) for s in requests} == {(TRACE, ABOVE, "a=b")}
    assert (streamed.trace_id.hex(), streamed.parent_span_id.hex()) == (TRACE, ABOVE)
    good, bad = requests[:3], requests[3]
    for span in good:
        known = attributes(span)
        assert (known["normfold.model"], known["normfold.version"]) == ("m", 1)
        assert (known["normfold.request_id"], known["rpc.grpc.status_code"]) == ("question 7", 0)
    assert (bad.status.code, bad.status.message) == (2, "INVALID_ARGUMENT")
    assert attributes(bad)["rpc.grpc.status_code"] == 3
    above = {span.span_id: span for span in (*good, streamed)}
    assert {span.parent_span_id for span in found["run"]} == set(above)
    for child in (*found["run"], *found["queue"]):
        span = above[child.parent_span_id]
        assert span.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
        assert child.end_time_unix_nano <= span.end_time_unix_nano
    (about,) = {resource.resource.SerializeToString() for request in collector for resource in request.resource_spans}
    assert b"service.name" in about
    assert b"normfold" in about
    assert b"deployment.environment" in about


def test_a_batch_is_linked_with_its_requests(serve, tmp_path, models, ask, collector):
    models.write(tmp_path / "m", models.scale(), config=BATCHED)
    with serve(tmp_path) as one, ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: one.infer(ask("m")), range(2)))
    found = spans(collector)
    ids = {span.span_id for span in found["inference.GRPCInferenceService/ModelInfer"]}
    (batch,) = found["batch"]
    assert {batch.parent_span_id, *(link.span_id for link in batch.links)} == ids
    assert (attributes(batch)["normfold.rows"], attributes(batch)["normfold.requests"]) == (2, 2)


def test_each_refusal_of_a_burst_is_a_span(serve, tmp_path, models, ask, collector, monkeypatch):
    models.write(tmp_path / "m", models.scale())
    with serve(tmp_path, frontend="http2", max_queue_requests=1) as one:
        call(one, ask("m"))
        scheduler = one.server.catalog.find("m", "").scheduler
        monkeypatch.setattr(scheduler, "may_run_now", lambda run_time: False)
        one.server._admission.enter(None, "another", 1)
        infer = one.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", lambda m: m.SerializeToString())
        calls = [infer.future(ask("m"), timeout=60) for _ in range(20)]
        assert {each.code() for each in calls} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        one.server._admission.leave(None, "another", 1)
    assert len(spans(collector)["inference.GRPCInferenceService/ModelInfer"]) == 21


def test_the_sampler_is_that_of_the_environment(serve, tmp_path, models, ask, collector, monkeypatch):
    models.write(tmp_path / "m", models.scale())
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    with serve(tmp_path) as one:
        assert one.infer(ask("m")).model_version == "1"
    assert collector == []


@pytest.mark.parametrize(
    ("environment", "on"),
    [
        ({}, False),
        ({ENDPOINT: "http://c:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, True),
        ({ENDPOINT: "http://c:4317", "OTEL_SDK_DISABLED": "true"}, False),
        ({ENDPOINT: "http://c:4317", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_environment_turns_traces_on(environment, on):
    assert otlp.wanted(environment) is on


def test_the_start_says_where_traces_go_and_no_password(monkeypatch):
    monkeypatch.setattr(otlp, "_is_installed", lambda module: True)
    assert otlp.destination({}) == ""
    assert otlp.destination({ENDPOINT: "http://c:4317"}) == "http://c:4317 (OTLP, grpc)"
    other = {ENDPOINT: "https://me:secret@c:4318/x", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    assert otlp.destination(other) == "https://c:4318/x (OTLP, http/protobuf)"
    assert otlp.destination({ENDPOINT: "http://c:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}) == ""
    monkeypatch.setattr(otlp, "_is_installed", lambda module: False)
    assert otlp.destination({ENDPOINT: "http://c:4317"}) == ""  # the log says what to install


def test_only_an_exporter_that_is_there_counts():
    assert otlp._is_installed("json.decoder")
    assert not otlp._is_installed("no.such.exporter")


def test_what_cannot_be_sent_is_said_and_the_server_goes_on(caplog, monkeypatch):
    assert otlp.spans({ENDPOINT: "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}) is None
    assert "'http/json', not one of grpc, http/protobuf" in caplog.text
    monkeypatch.setattr(otlp, "EXPORTERS", {"grpc": "no_such_package_of_anybody"})
    assert otlp.spans({ENDPOINT: "http://c"}) is None
    assert "pip install normfold[otel]" in caplog.text


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported():
    code = """
import sys
from pathlib import Path
from normfold.serving.infer import otlp, tracing, inference
from normfold.serving.service import service
assert otlp.spans({}) is None
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_collector_that_is_away_holds_the_end_no_longer_than_was_promised(monkeypatch):
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    from normfold.serving.infer import spans

    back = threading.Event()

    class Away:
        def shutdown(self):
            assert back.wait(60)

    monkeypatch.setattr(spans, "FLUSH_SECONDS", 0.01)
    exported, ended = spans.Exported(Away()), threading.Event()

    def end():
        asyncio.run(exported.close())
        ended.set()

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    soon = ended.wait(10)
    back.set()
    ending.join(60)
    assert soon, "the end waited until the collector was back"
