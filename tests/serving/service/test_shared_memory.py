"""Inputs and outputs in shared memory, asked over the wire."""

from __future__ import annotations

import asyncio
import threading
from multiprocessing import shared_memory
from unittest.mock import Mock

import grpc
import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.infer import inference, inputs
from normfold.serving.infer.shared_memory import SharedMemory

S = grpc.StatusCode
X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def region():
    """A shared memory object of 256 bytes with X at offset 64."""
    memory = shared_memory.SharedMemory(create=True, size=256)
    memory.buf[64:80] = X.tobytes()
    yield memory
    memory.close()
    memory.unlink()


def register(server, memory, name="r", offset=0, size=256):
    server.call(
        "SystemSharedMemoryRegister",
        pb.SystemSharedMemoryRegisterRequest(name=name, key=f"/{memory.name}", offset=offset, byte_size=size),
    )


def in_region(ask, name="r", offset=0, size=16, output=None, **model):
    request = ask(**model)
    request.raw_input_contents[:] = []
    parameters = request.inputs[0].parameters
    parameters["shared_memory_region"].string_param = name
    parameters["shared_memory_offset"].int64_param = offset
    parameters["shared_memory_byte_size"].int64_param = size
    if output is not None:
        parameters = request.outputs.add(name="y").parameters
        parameters["shared_memory_region"].string_param = name
        parameters["shared_memory_offset"].int64_param = output[0]
        parameters["shared_memory_byte_size"].int64_param = output[1]
    return request


def test_inputs_and_outputs_go_through_shared_memory(own, ask, region, refused):
    register(own, region, offset=64, size=128)
    status = own.call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest())
    assert [(r.name, r.offset, r.byte_size) for r in status.regions.values()] == [("r", 64, 128)]
    response = own.infer(in_region(ask, output=(32, 64)))
    assert list(response.raw_output_contents) == [b""]
    assert list(response.outputs[0].shape) == [1, 4]
    np.testing.assert_array_equal(np.frombuffer(region.buf[96:112], "<f4"), 3 * X[0])
    own.call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="r"))
    assert not own.call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()).regions
    assert refused(own, "ModelInfer", in_region(ask))[0] is S.NOT_FOUND


def test_a_raw_input_beside_one_in_shared_memory_is_the_first_raw_entry(own, ask, region):
    register(own, region)
    request = in_region(ask, offset=64, model="two", a=X, b=X)
    request.raw_input_contents.append((10 * X).tobytes())
    np.testing.assert_array_equal(np.frombuffer(own.infer(request).raw_output_contents[0], "<f4"), 11 * X[0])


@pytest.mark.parametrize(
    ("offset", "size"),
    [(-1, 16), (256, 1), (250, 16), (0, 257), (0, -1), (1, (1 << 63) - 1), ((1 << 63) - 1, 16), (-(1 << 63), 16)],
)
@pytest.mark.parametrize("side", ["input", "output"])
def test_no_offset_or_size_reaches_outside_a_region(own, ask, region, offset, size, side, refused):
    register(own, region)
    where = {"offset": offset, "size": size} if side == "input" else {"offset": 64, "output": (offset, size)}
    request = in_region(ask, **where)
    status, words = refused(own, "ModelInfer", request)
    assert status is S.INVALID_ARGUMENT
    assert "for shared memory region: 'r'" in words


def test_an_output_that_needs_more_than_its_region_is_refused(own, ask, region, refused):
    register(own, region)
    status, words = refused(own, "ModelInfer", in_region(ask, offset=64, output=(0, 8)))
    assert status is S.INVALID_ARGUMENT
    assert "(8 bytes) should be at least 16 bytes" in words


def test_a_region_that_shrinks_is_an_error_and_not_a_crash(own, ask, region, refused):
    register(own, region)
    with open(f"/dev/shm/{region.name}", "r+b") as file:  # noqa: PTH123
        file.truncate(32)
    assert refused(own, "ModelInfer", in_region(ask, offset=64))[0] is S.INVALID_ARGUMENT
    assert refused(own, "ModelInfer", in_region(ask, offset=0, output=(64, 64)))[0] is S.INVALID_ARGUMENT
    assert own.infer(ask()).model_version == "2"


def test_what_cannot_be_registered_is_refused(own, region, tmp_path, refused):
    make = pb.SystemSharedMemoryRegisterRequest
    method = "SystemSharedMemoryRegister"
    register(own, region)
    assert refused(own, method, make(name="r", key=f"/{region.name}", byte_size=1)) == (
        S.ALREADY_EXISTS,
        "shared memory region 'r' already in manager",
    )
    for key in ("/nokey", "", "/", "/../etc/passwd", "a/b", "/.."):
        assert refused(own, method, make(name="q", key=key, byte_size=1)) == (
            S.INTERNAL,
            f"Unable to open shared memory region: '{key}'",
        )
    for offset, size in ((0, 257), (256, 1), ((1 << 64) - 1, 2), (0, (1 << 64) - 1), (0, 0)):
        request = make(name="q", key=f"/{region.name}", offset=offset, byte_size=size)
        assert refused(own, method, request)[0] is S.INVALID_ARGUMENT
    assert refused(own, method, make(key=f"/{region.name}", byte_size=1))[0] is S.INVALID_ARGUMENT


def test_status_of_an_unknown_region_is_not_found_and_unregistering_it_no_error(server, refused):
    assert refused(server, "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="q")) == (
        S.NOT_FOUND,
        "Unable to find system shared memory region: 'q'",
    )
    server.call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="q"))


def test_shared_memory_can_be_off(serve, repository, region, refused):
    with serve(repository, shared_memory=False, load_models=("m",)) as one:
        request = pb.SystemSharedMemoryRegisterRequest(name="r", key=f"/{region.name}", byte_size=1)
        assert refused(one, "SystemSharedMemoryRegister", request)[0] is S.UNIMPLEMENTED


def test_there_is_no_cuda_shared_memory_and_it_is_said(server, refused):
    assert not server.call("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()).regions
    server.call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest())
    request = pb.CudaSharedMemoryRegisterRequest(name="g", raw_handle=bytes(64), byte_size=1)
    status, words = refused(server, "CudaSharedMemoryRegister", request)
    assert status is S.INVALID_ARGUMENT
    assert "no CUDA shared memory here" in words
    assert refused(server, "CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name="g"))[0] is S.NOT_FOUND


@pytest.fixture
def large_region():
    """A shared memory object of 200,000 empty strings."""
    memory = shared_memory.SharedMemory(create=True, size=800_000)
    yield memory
    memory.close()
    memory.unlink()


def test_a_small_request_with_much_in_shared_memory_is_worked_on_off_the_event_loop(
    own, ask, large_region, monkeypatch
):
    register(own, large_region, size=800_000)
    threads = {}
    for place, name in ((SharedMemory, "read"), (inference, "read_inputs"), (inputs, "to_array")):
        work = getattr(place, name)

        def watched(*args, work=work, name=name):
            threads[name] = threading.current_thread().name
            return work(*args)

        monkeypatch.setattr(place, name, watched)

    async def loop_thread() -> str:
        return threading.current_thread().name

    request = in_region(ask, model="text", size=800_000)
    request.inputs[0].datatype = "BYTES"
    request.inputs[0].shape[:] = [100_000, 2]
    own.infer(request)
    assert threads.keys() == {"read", "read_inputs", "to_array"}
    assert own.on_loop(loop_thread()) not in threads.values()


@pytest.fixture
def steps(monkeypatch):
    """The steps of requests that went to a thread, and all."""
    off, found, every = inference.off_loop, [], []

    async def noted(large, function, *args):
        every.append(function.__name__)
        if large:
            found.append(function.__name__)
        return await off(large, function, *args)

    monkeypatch.setattr(inference, "off_loop", noted)
    return found, every


def test_numbers_in_shared_memory_cost_no_thread_where_a_copy_of_them_is_short(own, ask, large_region, refused, steps):
    register(own, large_region, size=800_000)
    request = in_region(ask, size=160_000)
    request.inputs[0].shape[:] = [10_000, 4]
    assert "batch-size" in refused(own, "ModelInfer", request)[1]  # by _check
    assert ("_check" in steps[1], steps[0]) == (True, [])


def test_a_large_request_without_shared_memory_goes_to_a_thread_twice_before_its_run(own, ask, refused, steps):
    request = ask()
    request.inputs[0].shape[:] = [10_000, 4]
    request.raw_input_contents[:] = [bytes(160_000)]
    assert "batch-size" in refused(own, "ModelInfer", request)[1]  # by _check
    assert steps[0] == ["_parsed", "_check"]


def test_a_region_is_not_read_for_a_request_that_is_refused(own, ask, region, refused, monkeypatch):
    register(own, region)
    monkeypatch.setattr(SharedMemory, "read", Mock(side_effect=AssertionError))
    wrong = in_region(ask)
    wrong.inputs[0].shape[:] = [1, 5]
    unknown = in_region(ask)
    unknown.inputs[0].name = "nope"
    for request in (wrong, unknown):
        assert refused(own, "ModelInfer", request)[0] is S.INVALID_ARGUMENT


def test_the_bytes_of_regions_count_among_those_under_way(serve, repository, ask, large_region, refused, monkeypatch):
    with serve(repository, strict_readiness=False, max_queue_bytes=1 << 20) as own:
        register(own, large_region, size=800_000)
        model, under_way = own.server.catalog.find("text", ""), own.server._admission.under_way
        answer, waiting, go_on = model.infer, threading.Event(), threading.Event()

        async def held(*args):
            waiting.set()
            await asyncio.to_thread(go_on.wait, 30)
            return await answer(*args)

        monkeypatch.setattr(model, "infer", held)
        request = in_region(ask, model="text", size=800_000)
        request.inputs[0].datatype = "BYTES"
        request.inputs[0].shape[:] = [100_000, 2]
        call = own.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", request_serializer=lambda message: message.SerializeToString()
        )
        first = call.future(request, timeout=60)
        assert waiting.wait(30)
        assert under_way.bytes == 1 << 19  # one alone leaves half of them to others
        status, details = refused(own, "ModelInfer", request)
        go_on.set()
        first.result()
        assert (status, under_way.bytes) == (S.RESOURCE_EXHAUSTED, 0)
        assert "requests of too many bytes are under way" in details
        assert model.statistics.fail.count == 1
