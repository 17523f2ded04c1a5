"""An overloaded server over the wire, on both frontends: refusals and when to try again, and turns among clients."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tests.waiting import wait_until

from normfold import AsyncClient, Client, ClientError
from normfold.protos import grpc_service as pb
from normfold.protos import health
from normfold.serving.errors import NoMemory, Overloaded
from normfold.serving.infer import inference
from normfold.serving.rpc import methods
from normfold.serving.scheduling.admission import Admission, ModelLoad
from normfold.serving.scheduling.scheduler import Scheduler

from .test_scheduler import Gate

X = np.ones((1, 4), np.float32)


def rpc_status():
    """google.rpc.Status, and google.rpc.RetryInfo, from their published definitions."""
    file = descriptor_pb2.FileDescriptorProto(
        name="rpc.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=["google/protobuf/any.proto", "google/protobuf/duration.proto"],
    )
    status = file.message_type.add(name="Status")
    field = descriptor_pb2.FieldDescriptorProto
    status.field.add(name="code", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    status.field.add(name="message", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    kind = ".google.protobuf.Any"
    status.field.add(name="details", number=3, type=field.TYPE_MESSAGE, type_name=kind, label=field.LABEL_REPEATED)
    retry = file.message_type.add(name="RetryInfo")
    kind = ".google.protobuf.Duration"
    retry.field.add(name="retry_delay", number=1, type=field.TYPE_MESSAGE, type_name=kind, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    from google.protobuf import any_pb2, duration_pb2

    for known in (any_pb2, duration_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}"))
        for name in ("Status", "RetryInfo")
    ]


def gated(served, name, gate, monkeypatch, instances=1):
    """Put ``gate`` in place of the runs of a model."""
    model = served.server.catalog.find(name, "")
    scheduler = Scheduler(gate, model.scheduler._policy, instances, ThreadPoolExecutor(1), model.statistics)
    monkeypatch.setattr(scheduler, "may_run_now", lambda run_time: False)
    monkeypatch.setattr(model, "scheduler", scheduler)
    return model


@pytest.fixture
def folder(tmp_path, models):
    models.write(tmp_path / "one", models.scale(), config="max_batch_size: 8")
    return tmp_path


def infer(served):
    return served.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request_serializer=lambda m: m.SerializeToString()
    )


def test_a_refusal_says_when_to_try_again(serve, folder, ask, frontend, monkeypatch):
    with serve(folder, frontend=frontend, max_queue_requests=1) as served:
        gate = Gate(is_open=False)
        model = gated(served, "one", gate, monkeypatch)
        first = infer(served).future(ask("one"), timeout=30)
        assert gate.started.acquire(timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            infer(served)(ask("one"), timeout=30)
        gate.open.set()
        first.result()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        details = "overloaded: too many requests are under way in this server, try again later"
        assert caught.value.details() == details
        trailers = dict(caught.value.trailing_metadata())
        wait_ms = int(trailers["grpc-retry-pushback-ms"])
        assert 20 <= wait_ms <= 40
        status_type, retry_type = rpc_status()
        status = status_type.FromString(trailers["grpc-status-details-bin"])
        assert (status.code, status.message) == (8, details)
        retry = retry_type()
        assert status.details[0].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() == wait_ms
        assert model.statistics.fail.count == 1
        infer(served)(ask("one"), timeout=30)


def test_the_bytes_under_way_are_those_of_the_setting(serve, folder, ask, frontend, monkeypatch):
    """Of 1 MiB, 600 KiB leave room for 400 KiB and for nothing as large as itself."""
    with serve(folder, frontend=frontend, max_queue_bytes=1 << 20) as served:
        gate = Gate(is_open=False)
        gated(served, "one", gate, monkeypatch)
        large = ask("one", x=np.zeros((8, 4)))
        large.parameters["padding"].string_param = "x" * (600 << 10)
        first = infer(served).future(large, timeout=60)
        assert gate.started.acquire(timeout=10)
        with pytest.raises(grpc.RpcError, match="requests of too many bytes are under way in this server") as caught:
            infer(served)(large, timeout=30)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        small = infer(served).future(ask("one", x=np.ones((1, 4))), timeout=60)
        gate.open.set()
        first.result()
        small.result()
        infer(served)(large, timeout=30)


def test_a_refusal_neither_parses_the_request_nor_makes_a_task(serve, folder, ask, monkeypatch):
    """One of a known form and one of a new form, many times; the only place is taken."""
    parsed: list[int] = []
    made: list[int] = []
    parse = inference.parse

    async def count_tasks():
        def factory(loop, coroutine, **options):
            made.append(1)
            return asyncio.Task(coroutine, loop=loop, **options)

        asyncio.get_running_loop().set_task_factory(factory)

    def counted(*arguments):
        parsed.append(1)
        return parse(*arguments)

    with serve(folder, frontend="http2", max_queue_requests=1) as served:
        model = served.server.catalog.find("one", "")
        infer(served)(ask("one"), timeout=30)  # it is a planned request from now on
        monkeypatch.setattr(model.scheduler, "may_run_now", lambda run_time: False)
        monkeypatch.setattr(inference, "parse", counted)
        served.on_loop(count_tasks())
        served.server._admission.enter(None, "another", 1)
        for _ in range(20):
            for rows in (1, 2):
                with pytest.raises(grpc.RpcError, match="too many requests are under way in this server"):
                    infer(served)(ask("one", x=[[1, 2, 3, 4]] * rows), timeout=30)
        assert parsed == []
        assert len(made) < 10  # what a server does each second makes some; 40 calls would make 40
        assert model.statistics.fail.count == 40
        served.server._admission.leave(None, "another", 1)
        for n in range(20):  # the same counters see a request that is admitted
            infer(served)(ask("one", x=[[1, 2, 3, n]] * 2), timeout=30)
        assert len(parsed) >= 1
        assert len(made) >= 20


def refusing(monkeypatch, error, times):
    """Make the server refuse the first ``times`` requests; the list grows by one for each request that comes."""
    seen: list[int] = []

    def refusal(self, *args):
        seen.append(1)
        return error if len(seen) <= times else None

    monkeypatch.setattr(Admission, "refusal", refusal)
    return seen


def asked(address: str, kind: str, rows: int = 1, timeout: float = 60.0):
    """The answer to a request of a shape that the server has not seen: others may be answered without waiting."""
    x = np.repeat(X, rows, axis=0)
    if kind == "blocking":
        with Client(address) as client:
            return client.infer("one", {"x": x}, ["y"], timeout=timeout)["y"]

    async def ask():
        async with AsyncClient(address, stream=kind == "stream") as client:
            return (await client.infer("one", {"x": x}, ["y"], timeout=timeout))["y"]

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", ["blocking", "async", "stream"])
def test_our_clients_try_a_refused_request_again(serve, folder, frontend, monkeypatch, kind):
    with serve(folder, frontend=frontend) as served:
        seen = refusing(monkeypatch, Overloaded("busy", 0.02), 2)
        np.testing.assert_array_equal(asked(served.server.address, kind), 2 * X)
        assert len(seen) == 3
        seen = refusing(monkeypatch, Overloaded("busy", 0.02), 99)
        with pytest.raises(ClientError, match="RESOURCE_EXHAUSTED: busy"):
            asked(served.server.address, kind, rows=2, timeout=1.0)
        assert 3 < len(seen) < 12  # until the deadline, more and more slowly


@pytest.mark.parametrize("kind", ["blocking", "async", "stream"])
def test_our_clients_do_not_try_again_what_can_never_be_answered(serve, folder, frontend, monkeypatch, kind):
    with serve(folder, frontend=frontend) as served:
        seen = refusing(monkeypatch, NoMemory("too large"), 99)
        with pytest.raises(ClientError, match="RESOURCE_EXHAUSTED: too large"):
            asked(served.server.address, kind)
        assert len(seen) == 1


def test_a_burst_of_one_async_client_is_answered_whole(serve, folder, frontend, monkeypatch):
    """More rows than a slow model lets wait: the others wait in the client."""
    monkeypatch.setattr(ModelLoad, "seconds_each", 0.01)
    with serve(folder, frontend=frontend, max_queue_seconds=0.1) as served:
        gate = Gate(is_open=False)
        model = gated(served, "one", gate, monkeypatch)

        async def burst():
            async with AsyncClient(served.server.address) as client:
                rows = [asyncio.ensure_future(client.infer("one", {"x": X * n}, ["y"])) for n in range(400)]
                await asyncio.to_thread(wait_until, lambda: model.scheduler.waiting >= 99)
                gate.open.set()
                return [answer["y"][0, 0] for answer in await asyncio.gather(*rows)]

        assert asyncio.run(burst()) == [2 * n for n in range(400)]
        assert model.statistics.fail.count == 0


@pytest.mark.parametrize("in_flight", [0, -1, 1.5, True, "3"])
def test_a_number_of_inferences_in_flight_is_at_least_one(in_flight):
    with pytest.raises(ValueError, match="is not a number of inferences: give 1 or more"):
        AsyncClient("127.0.0.1:1", in_flight=in_flight)


def test_a_client_with_one_request_waits_for_one_of_a_client_with_many(serve, folder, ask, frontend, monkeypatch):
    with serve(folder, frontend=frontend) as served:
        gate = Gate(is_open=False)
        model = gated(served, "one", gate, monkeypatch)
        greedy = [infer(served).future(ask("one", x=[[1, n, 0, 0]]), timeout=60) for n in range(60)]
        wait_until(lambda: model.scheduler.waiting == 59)
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(served.server.address, options=options) as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer", request_serializer=lambda m: m.SerializeToString()
            )
            modest = call.future(ask("one", x=[[2, 0, 0, 0]]), timeout=60)
            wait_until(lambda: model.scheduler.waiting == 60)
            gate.open.set()
            modest.result()
        for each in greedy:
            each.result()
        assert gate.runs.index([2.0]) <= 2


def test_a_full_queue_of_one_client_makes_place_for_another(serve, tmp_path, models, ask, frontend, monkeypatch):
    """config.pbtxt: two may wait."""
    queue = "max_batch_size: 8 dynamic_batching { default_queue_policy { max_queue_size: 2 } }"
    models.write(tmp_path / "one", models.scale(), config=queue)
    with serve(tmp_path, frontend=frontend) as served:
        gate = Gate(is_open=False)
        model = gated(served, "one", gate, monkeypatch)
        first = infer(served).future(ask("one"), timeout=60)
        assert gate.started.acquire(timeout=10)
        greedy = []
        for n in (1, 2):
            greedy.append(infer(served).future(ask("one", x=[[1, n, 0, 0]]), timeout=60))
            wait_until(lambda count=n: model.scheduler.waiting == count)
        with grpc.insecure_channel(served.server.address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer", request_serializer=lambda m: m.SerializeToString()
            )
            modest = call.future(ask("one", x=[[2, 0, 0, 0]]), timeout=60)
            with pytest.raises(grpc.RpcError, match="Exceeds maximum queue size") as caught:
                greedy[1].result()
            gate.open.set()
            modest.result()
        first.result()
        greedy[0].result()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) >= 20


def test_refusals_are_counted_in_the_log_and_not_written_one_by_one(caplog, monkeypatch):
    monkeypatch.setattr(methods, "_REFUSALS", methods._Refusals())
    monkeypatch.setattr(methods.time, "monotonic", lambda: 1000.0)
    for _ in range(5):
        methods.status_of(Overloaded("busy", 1.0), "/s/M")
    monkeypatch.setattr(methods.time, "monotonic", lambda: 1000.0 + methods.REFUSALS_SECONDS)
    methods.status_of(Overloaded("busy", 1.0), "/s/M")
    assert [record.getMessage() for record in caplog.records] == [
        "/s/M: RESOURCE_EXHAUSTED: busy",
        "/s/M: RESOURCE_EXHAUSTED: busy; 4 more refusals since the last such line",
    ]


@pytest.mark.parametrize("kind", ["numbers", "strings", "strings in a stream"])
@pytest.mark.parametrize("place", ["lift", "read_inputs", "write_outputs"])
def test_health_is_answered_while_a_large_request_is_worked_on(
    serve, tmp_path, models, ask, frontend, monkeypatch, place, kind
):
    """The work waits until health was answered: on the event loop it would wait in vain."""
    models.write(tmp_path / "large", models.identity(1 if kind == "numbers" else 8, ["N"]))
    answered = threading.Event()
    work = getattr(inference, place)
    threads: list[str] = []

    def watched(*args):
        if place != "lift" or len(args[0]) > 1 << 16:
            threads.append(threading.current_thread().name)
            assert answered.wait(20)
        return work(*args)

    with serve(tmp_path, frontend=frontend) as served:
        loop_name = served.on_loop(_thread_name())
        monkeypatch.setattr(inference, place, watched)
        request = ask("large", x=np.zeros(100_000))
        if kind != "numbers":  # empty ones: each is a length of 4 bytes
            request.inputs[0].datatype = "BYTES"
        elif place == "write_outputs":
            request.outputs.add(name="y").parameters["classification"].int64_param = 100_000
        if kind.endswith("stream"):
            path = "/inference.GRPCInferenceService/ModelStreamInfer"
            answers = served.channel.stream_stream(path)(iter([request.SerializeToString()]), timeout=60)
            wait_for = answers.__next__
        else:
            wait_for = infer(served).future(request, timeout=60).result
        wait_until(lambda: threads)
        check = served.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=health.HealthCheckResponse.FromString,
        )
        try:
            assert check(health.HealthCheckRequest(), timeout=10).status == 1
        finally:
            answered.set()
        answer = wait_for()
        assert not kind.endswith("stream") or not pb.ModelStreamInferResponse.FromString(answer).error_message
        assert loop_name not in threads


async def _thread_name() -> str:
    return threading.current_thread().name
