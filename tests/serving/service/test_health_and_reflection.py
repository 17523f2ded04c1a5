"""grpc.health.v1 in every state, and reflection of everything that is served."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import Counter

import grpc
import pytest
from google.protobuf import descriptor_pb2

from normfold.protos import grpc_service as pb
from normfold.protos import health, reflection_v1, reflection_v1alpha
from normfold.serving.service.health import WOKEN, Health

SERVING, NOT_SERVING = health.HealthCheckResponse.SERVING, health.HealthCheckResponse.NOT_SERVING
UNKNOWN = health.HealthCheckResponse.SERVICE_UNKNOWN


def check(server, service=""):
    rpc = server.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=health.HealthCheckResponse.FromString,
    )
    return rpc(health.HealthCheckRequest(service=service), timeout=10).status


def watch(server, service):
    """A queue of the states that a watcher hears."""
    call = server.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=health.HealthCheckResponse.FromString,
    )(health.HealthCheckRequest(service=service), timeout=60)
    heard: queue.Queue = queue.Queue()

    def listen():
        try:
            for response in call:
                heard.put(response.status)
            heard.put("end")
        except grpc.RpcError as error:
            heard.put(error.code())

    threading.Thread(target=listen, daemon=True).start()
    return heard, call


@pytest.mark.parametrize(
    ("service", "status"),
    [("", SERVING), ("inference.GRPCInferenceService", SERVING), ("m", SERVING), ("bad", NOT_SERVING)],
)
def test_check_tells_the_server_and_each_model(server, service, status):
    assert check(server, service) == status


def test_check_of_an_unknown_name_is_not_found(server):
    with pytest.raises(grpc.RpcError) as caught:
        check(server, "nope")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_strict_server_with_a_failed_model_does_not_serve(serve, repository):
    with serve(repository) as strict:
        assert check(strict) == NOT_SERVING
        assert check(strict, "m") == SERVING


def test_watch_tells_every_change_and_the_end(serve, repository):
    with serve(repository, strict_readiness=False, load_models=("m",)) as one:
        whole, _ = watch(one, "")
        model, _ = watch(one, "m")
        later, _ = watch(one, "nb")
        assert [heard.get(timeout=10) for heard in (whole, model, later)] == [SERVING, SERVING, UNKNOWN]
        one.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nb"))
        assert [later.get(timeout=10) for _ in range(2)] == [NOT_SERVING, SERVING]  # it loads, and then answers
        one.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m"))
        assert model.get(timeout=10) == NOT_SERVING
        one.loop.call_soon_threadsafe(one.server.catalog.leave)
        assert whole.get(timeout=10) == NOT_SERVING
        assert whole.get(timeout=10) == "end"
        assert check(one) == check(one, "nb") == NOT_SERVING


def test_a_watcher_that_leaves_is_forgotten(serve, repository):
    with serve(repository, strict_readiness=False, load_models=("m",)) as one:
        heard, call = watch(one, "")
        assert heard.get(timeout=10) == SERVING
        call.cancel()
        assert heard.get(timeout=10) is grpc.StatusCode.CANCELLED
        for _ in range(100):
            if not one.server.health._watchers:
                break
            threading.Event().wait(0.05)
        assert not one.server.health._watchers


class Changing:
    """The part of a catalog that watchers ask."""

    def __init__(self):
        self.is_ready, self.leaving, self.listeners = False, False, []

    def on_change(self, listener):
        self.listeners.append(listener)

    def ready(self, strict):
        return self.is_ready

    def change(self, is_ready):
        self.is_ready = is_ready
        for listener in self.listeners:
            listener()


def test_many_watchers_hear_of_a_change_a_few_in_each_turn_of_the_event_loop():
    """20,000 of them kept everybody waiting for 150 ms; also those that had to wait hear of it when changes go on."""

    async def watched():
        catalog, heard = Changing(), Counter()
        watchers = Health(catalog, True)

        async def listen(number):
            async for answer in watchers.watch(health.HealthCheckRequest()):
                heard[number, answer.status] += 1

        listening = [asyncio.ensure_future(listen(number)) for number in range(10 * WOKEN)]
        await asyncio.sleep(0)
        assert heard == Counter({(number, NOT_SERVING): 1 for number in range(10 * WOKEN)})
        for turn in range(30):
            if turn < 10:
                catalog.change(is_ready=True)
            before = heard.total()
            await asyncio.sleep(0)
            assert heard.total() <= before + WOKEN
        assert heard.total() == 20 * WOKEN
        for each in listening:
            each.cancel()
        await asyncio.wait(listening)

    asyncio.run(watched())


def reflect(server, messages, **request):
    package = messages.DESCRIPTOR.package
    call = server.channel.stream_stream(
        f"/{package}.ServerReflection/ServerReflectionInfo",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=messages.ServerReflectionResponse.FromString,
    )
    (answer,) = call(iter([messages.ServerReflectionRequest(host="h", **request)]), timeout=10)
    assert answer.valid_host == "h"
    assert answer.original_request.host == "h"
    return answer


BOTH = pytest.mark.parametrize("messages", [reflection_v1, reflection_v1alpha], ids=["v1", "v1alpha"])


@BOTH
def test_every_service_is_listed(server, messages):
    listed = [service.name for service in reflect(server, messages, list_services="*").list_services_response.service]
    assert listed == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "normfold.Metrics",
    ]


def _names(answer) -> list[str]:
    files = answer.file_descriptor_response.file_descriptor_proto
    return [descriptor_pb2.FileDescriptorProto.FromString(file).name for file in files]


@BOTH
@pytest.mark.parametrize(
    ("symbol", "files"),
    [
        ("inference.GRPCInferenceService", ["grpc_service.proto", "model_config.proto"]),
        ("inference.GRPCInferenceService.ModelInfer", ["grpc_service.proto", "model_config.proto"]),
        ("inference.ModelInferRequest.InferInputTensor", ["grpc_service.proto", "model_config.proto"]),
        ("inference.DataType", ["model_config.proto"]),
        ("grpc.health.v1.Health", ["health.proto"]),
        ("grpc.reflection.v1alpha.ServerReflection", ["reflection_v1alpha.proto"]),
    ],
)
def test_a_symbol_leads_to_its_file_and_what_that_imports(server, messages, symbol, files):
    assert _names(reflect(server, messages, file_containing_symbol=symbol)) == files


@BOTH
def test_a_file_is_found_by_its_name(server, messages):
    assert _names(reflect(server, messages, file_by_filename="health.proto")) == ["health.proto"]


@BOTH
@pytest.mark.parametrize(
    "request_",
    [
        {"file_containing_symbol": "inference.Nope"},
        {"file_containing_symbol": "inference.GRPCInferenceService.Nope"},
        {"file_containing_symbol": ""},
        {"file_by_filename": "nope.proto"},
        {"all_extension_numbers_of_type": "inference.Nope"},
        {},
    ],
)
def test_what_is_not_there_is_an_answer(server, messages, request_):
    answer = reflect(server, messages, **request_)
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@BOTH
def test_messages_have_no_extensions(server, messages):
    answer = reflect(server, messages, all_extension_numbers_of_type="inference.ModelInferRequest")
    assert answer.all_extension_numbers_response.base_type_name == "inference.ModelInferRequest"
    assert not answer.all_extension_numbers_response.extension_number
    wanted = messages.ExtensionRequest(containing_type="inference.ModelInferRequest", extension_number=5)
    assert reflect(server, messages, file_containing_extension=wanted).error_response.error_code == 5
