"""AsyncClient(stream=True): what unary calls give, over one stream; with the real server and with ones that break."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import grpc
import grpc.aio
import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import ClientError
from normfold.serving.client.multiplex import Multiplexer, stream_status
from normfold.serving.client.transport.answers import Reply
from normfold.serving.errors import Status

X = np.array([[1, 2, 3, 4]], np.float32)


pytestmark = pytest.mark.usefixtures("each_transport")


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


@contextlib.asynccontextmanager
async def stand_in(stream):
    """A server whose ModelStreamInfer is ``stream(requests, context)``; gives its address."""

    async def handle(requests, context):
        async for answer in stream(requests, context):
            yield answer

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        handle,
        request_deserializer=pb.ModelInferRequest.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
    service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelStreamInfer": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def answer(request):
    """y = x."""
    response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
    response.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
    response.raw_output_contents.append(request.raw_input_contents[0])
    return pb.ModelStreamInferResponse(infer_response=response)


def test_each_of_many_calls_at_once_gets_its_own_answer(server):
    async def ask():
        async with AsyncClient(server.server.address, stream=True) as client:
            return await asyncio.gather(*(client.infer("m", {"x": X * i}, version="1") for i in range(200)))

    for i, answers in enumerate(run(ask())):
        np.testing.assert_array_equal(answers["y"], 2 * i * X)
        np.testing.assert_array_equal(answers["z"], -i * X)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's own, of such tasks
def test_what_a_closed_event_loop_leaves_behind_does_not_end_the_stream_of_the_next(server):
    async def ask(times):
        for _ in range(times):
            answers = await client.infer("m", {"x": X}, version="1", timeout=20)
            np.testing.assert_array_equal(answers["y"], 2 * X)
            gc.collect()  # of tasks that were not cancelled before their loop was closed

    client = AsyncClient(server.server.address, stream=True)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    first.run_until_complete(ask(1))
    first.close()
    second.run_until_complete(ask(2))
    second.run_until_complete(client.close())
    second.close()


def test_a_classification_and_a_request_id_travel_over_the_stream_too(server):
    async def ask():
        async with AsyncClient(server.server.address, stream=True) as client:
            best = await client.classify("m", {"x": X}, top=1, output="y")
            return best, await client.infer("m", {"x": X}, version="1", request_id="mine")

    best, answers = run(ask())
    assert [[one.label for one in row] for row in best] == [["d"]]
    np.testing.assert_array_equal(answers["y"], 2 * X)


@pytest.mark.parametrize(
    ("model", "x", "request_id"),
    [("nope", X, ""), ("m", X[:, :3], "mine"), ("m", X[:, :3], ""), ("m", X.astype(np.float64), ""), ("bad", X, "")],
)
def test_an_error_is_the_same_as_that_of_a_unary_call_and_leaves_the_stream_open(server, model, x, request_id):
    async def ask():
        errors = []
        for stream in (False, True):
            async with AsyncClient(server.server.address, stream=stream) as client:
                with pytest.raises(ClientError) as raised:
                    await client.infer(model, {"x": x}, request_id=request_id)
                errors.append((raised.value.status, raised.value.details))
                await client.infer("m", {"x": X})
        return errors

    unary, streamed = run(ask())
    assert streamed == unary


def test_a_deadline_ends_one_call_and_its_late_answer_is_nobodys():
    async def slow_first(requests, context):
        held = None
        async for request in requests:
            if held is None:
                held = request
            else:
                yield answer(held)
                yield answer(request)

    async def ask():
        async with stand_in(slow_first) as address, AsyncClient(address, stream=True) as client:
            with pytest.raises(ClientError) as raised:
                await client.infer("m", {"x": X}, timeout=0.2, request_id="same")
            return raised.value.status, await client.infer("m", {"x": 5 * X}, request_id="same")

    status, answers = run(ask())
    assert status is grpc.StatusCode.DEADLINE_EXCEEDED
    np.testing.assert_array_equal(answers["y"], 5 * X)


def test_a_cancelled_call_leaves_the_others_alone():
    async def in_turn(requests, context):
        async for request in requests:
            await asyncio.sleep(0.05)
            yield answer(request)

    async def ask():
        async with stand_in(in_turn) as address, AsyncClient(address, stream=True) as client:
            calls = [asyncio.create_task(client.infer("m", {"x": i * X})) for i in range(4)]
            await asyncio.sleep(0.02)
            calls[1].cancel()
            return await asyncio.gather(*calls, return_exceptions=True)

    answers = run(ask())
    assert isinstance(answers[1], asyncio.CancelledError)
    for i in (0, 2, 3):
        np.testing.assert_array_equal(answers[i]["y"], i * X)


def test_what_had_no_answer_is_asked_again_when_the_stream_breaks_off():
    streams = []

    async def breaks_once(requests, context):
        streams.append([])
        async for request in requests:
            streams[-1].append(request.id)
            if len(streams) == 1 and len(streams[0]) == 3:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone for a moment")
            yield answer(request)

    async def ask():
        async with stand_in(breaks_once) as address, AsyncClient(address, stream=True) as client:
            return await asyncio.gather(*(client.infer("m", {"x": i * X}) for i in range(8)))

    for i, answers in enumerate(run(ask())):
        np.testing.assert_array_equal(answers["y"], i * X)
    assert len(streams) == 2


@pytest.mark.parametrize(("status", "streams"), [("UNAVAILABLE", {3}), ("PERMISSION_DENIED", {1, 2})])
def test_a_stream_that_keeps_breaking_fails_its_calls_with_its_status(status, streams):
    opened = []

    async def refuses(requests, context):
        opened.append(1)
        await context.abort(grpc.StatusCode[status], "not today")
        yield

    async def ask():
        async with stand_in(refuses) as address, AsyncClient(address, stream=True) as client:
            return await asyncio.gather(*(client.infer("m", {"x": X}) for _ in range(2)), return_exceptions=True)

    errors = run(ask())
    assert [(error.status.name, error.details) for error in errors] == [(status, "not today")] * 2
    assert len(opened) in streams  # one more where grpcio lost the status, in the midst of a write


def test_a_status_that_grpcio_lost_is_that_of_the_stream_before_or_one_to_try_again():
    ends = [Reply(Status.INTERNAL, "Internal error from Core"), Reply(Status.UNAVAILABLE, "not today")]

    class Calls:
        def __init__(self, ends):
            self.ends = list(ends)

        async def stream(self, path, messages):
            yield self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]

    async def ask(*ends):
        with pytest.raises(ClientError) as caught:
            await Multiplexer(Calls(ends), "here:1").infer(pb.ModelInferRequest(), 30)
        return caught.value.code, caught.value.details

    lost, known = ends
    assert run(ask(known, known, lost)) == (Status.UNAVAILABLE, "not today")
    assert run(ask(lost)) == (Status.UNAVAILABLE, "the server at here:1 ended the stream")


def refusal(request, pushback_ms):
    error = pb.ModelStreamInferResponse(error_message="full")
    error.infer_response.id = request.id
    error.infer_response.parameters["retry_pushback_ms"].int64_param = pushback_ms
    return error


def test_a_refusal_with_a_time_is_obeyed_until_the_deadline():
    async def full_at_first(requests, context):
        refused = 0
        async for request in requests:
            if refused < 5:
                refused += 1
                yield refusal(request, 10)
            else:
                yield answer(request)

    async def ask():
        async with stand_in(full_at_first) as address, AsyncClient(address, stream=True) as client:
            return await client.infer("m", {"x": 3 * X})

    np.testing.assert_array_equal(run(ask())["y"], 3 * X)


def test_refusals_with_a_time_do_not_count_when_the_stream_breaks_off():
    streams = []

    async def full_then_gone(requests, context):
        streams.append(context)
        refused = 0
        async for request in requests:
            if len(streams) > 1:
                yield answer(request)
            elif refused < 4:
                refused += 1
                yield refusal(request, 10)
            else:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    async def ask():
        async with stand_in(full_then_gone) as address, AsyncClient(address, stream=True) as client:
            return await client.infer("m", {"x": 3 * X})

    np.testing.assert_array_equal(run(ask())["y"], 3 * X)
    assert len(streams) == 2


def test_a_refused_request_that_the_next_stream_has_sent_is_not_sent_once_more_at_the_time_of_the_refusal():
    streams, sent = [], []

    class Calls:
        async def stream(self, path, messages):
            streams.append(path)
            requests = [pb.ModelInferRequest.FromString(await anext(messages))]
            if len(streams) == 1:
                yield refusal(requests[0], 200).SerializeToString()
                yield Reply(Status.UNAVAILABLE, "not today")
                return
            yield refusal(requests[0], 400).SerializeToString()
            requests.append(pb.ModelInferRequest.FromString(await anext(messages)))
            yield refusal(requests[1], 300).SerializeToString()  # a time after that of the first stream
            requests += [pb.ModelInferRequest.FromString(await anext(messages)) for _ in range(2)]
            sent.extend(request.id.partition("~")[0] for request in requests)
            for request in requests[:2]:
                yield pb.ModelStreamInferResponse(infer_response={"id": request.id}).SerializeToString()

    async def ask():
        multiplexer = Multiplexer(Calls(), "here:1")
        await asyncio.gather(*(multiplexer.infer(pb.ModelInferRequest(id=one), 30) for one in "ab"))
        await multiplexer.close()

    run(ask())
    assert sent == ["a", "b", "b", "a"]


def test_a_stream_that_broke_while_idle_is_opened_by_the_next_call():
    async def one_each(requests, context):
        async for request in requests:
            yield answer(request)
            return

    async def ask():
        async with stand_in(one_each) as address, AsyncClient(address, stream=True) as client:
            for _ in range(3):
                await client.infer("m", {"x": X})
                await asyncio.sleep(0.05)

    run(ask())


def test_closing_the_client_fails_what_waits():
    async def silent(requests, context):
        async for _ in requests:
            pass
        yield

    async def ask():
        async with stand_in(silent) as address:
            client = AsyncClient(address, stream=True)
            call = asyncio.create_task(client.infer("m", {"x": X}))
            await asyncio.sleep(0.1)
            await client.close()
            return await asyncio.gather(call, return_exceptions=True)

    (error,) = run(ask())
    assert error.status is grpc.StatusCode.CANCELLED


def test_a_stream_that_the_server_ends_leaves_no_task_behind():
    async def refuses(requests, context):
        yield answer(await anext(requests))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not today")

    async def ask():
        async with stand_in(refuses) as address, AsyncClient(address, stream=True) as client:
            before = asyncio.all_tasks()
            await client.infer("m", {"x": X})
            for _ in range(300):
                tasks = [task.get_coro().__qualname__ for task in asyncio.all_tasks() - before]
                if left := [name for name in tasks if "Server" not in name]:
                    await asyncio.sleep(0.01)
            return left

    assert run(ask()) == []


def test_where_nothing_listens_the_error_says_how_to_start_a_server():
    async def ask():
        async with AsyncClient("127.0.0.1:9", stream=True) as client:
            await client.infer("m", {"x": X})

    with pytest.raises(ClientError, match=r"no server answers at 127\.0\.0\.1:9") as raised:
        run(ask())
    assert raised.value.status is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("text", "status"),
    [  # what Triton 2.51 says, and the status with which its unary calls say it
        ("Request for unknown model: 'nope' is not found", "NOT_FOUND"),
        ("Request for unknown model: 'm' has no available versions", "NOT_FOUND"),
        ("Request for unknown model: 'm' version 1 is not at ready state", "UNAVAILABLE"),
        ("[request id: 1] Exceeds maximum queue size", "UNAVAILABLE"),
        ("Request timeout expired", "UNAVAILABLE"),
        ("[request id: 1] expected 1 inputs but got 2 inputs for model 'm'.", "INVALID_ARGUMENT"),
        ("unexpected inference input 'foo' for model 'm'", "INVALID_ARGUMENT"),
        ("[request id: 1] inference request batch-size must be <= 8 for 'm'", "INVALID_ARGUMENT"),
        (
            "[request id: 1] unexpected shape for input 'x' for model 'm'. Expected [-1,4], got [1,5].",
            "INVALID_ARGUMENT",
        ),
        ("the model failed to run", "UNKNOWN"),
    ],
)
def test_a_stream_error_without_a_status_gets_that_of_triton(text, status):
    assert stream_status(pb.ModelStreamInferResponse(error_message=text)).name == status
