"""Several workers on one port: to the client they are one server."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing import shared_memory
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.protos import health
from normfold.serving.frontends import FRONTENDS
from normfold.serving.load.processes import listeners

from .conftest import SCALE, write_model
from .several_workers import CONNECTIONS, TWO, X, call, check, connections, counted, infer, restart, serve_once, workers


@pytest.fixture(scope="module")
def two(start, repository):
    """A server of two workers, for tests that neither change nor kill."""
    with start(repository, *TWO) as server:
        yield server


def test_models_and_address_are_printed_once(start, repository):
    with start(repository, *TWO) as server:
        assert len(workers(server)) == 2
    printed = server.lines
    assert len([line for line in printed if line.startswith("  m version 1: ")]) == 1
    assert printed[-2:] == [f"listening on {server.address} (gRPC), 2 workers, ready", "stopped"]


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_every_frontend_shares_the_port(start, repository, frontend):
    with start(repository, *TWO, "--frontend", frontend) as server, connections(server.address) as channels:
        assert listeners(server.address) == workers(server)
        for channel in channels:
            infer(channel)
        assert {counted(channel, "m") for channel in channels} == {CONNECTIONS}
        done = serve_once("--repository", str(repository), "--listen", server.address, "--frontend", frontend, *TWO)
        assert "Address already in use" in done.stderr


def test_the_supervisor_does_not_load_onnxruntime_and_nobody_loads_grpc(two):
    def maps(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    assert "onnxruntime" not in maps(two.process.pid)
    assert all("onnxruntime" in maps(pid) for pid in workers(two))
    assert not any("cygrpc" in maps(pid) for pid in (two.process.pid, *workers(two)))


def test_every_worker_gets_connections_and_the_statistics_are_the_sum(two):
    pids = workers(two)
    before = {pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids}
    with connections(two.address) as channels:
        sums = {counted(channel, "nb") for channel in channels}
        assert len(sums) == 1, "the workers do not agree"
        for number, channel in enumerate(channels):
            for _ in range(number + 1):
                infer(channel, "nb")
        sent = sum(range(1, CONNECTIONS + 1))
        assert {counted(channel, "nb") for channel in channels} == {sums.pop() + sent}
        assert all(len(list(Path(f"/proc/{pid}/fd").iterdir())) > before[pid] for pid in pids)


def test_loading_and_unloading_hold_for_all_workers_and_for_those_that_come_later(start, own):
    with start(own, *TWO) as server, connections(server.address) as channels:
        write_model(own / "late", SCALE.replace("FACTOR", "5.0"))
        call(channels[0], "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="late"))
        call(channels[1], "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="nb"))

        def check():
            for channel in channels:
                output = infer(channel, "late").raw_output_contents[0]
                np.testing.assert_array_equal(np.frombuffer(output, np.float32), 5 * X[0])
                assert not call(channel, "ModelReady", pb.ModelReadyRequest(name="nb")).ready
                states = {m.name: m.state for m in call(channel, "RepositoryIndex").models}
                assert states == {"late": "READY", "m": "READY", "nb": "UNAVAILABLE"}

        check()
        for pid in workers(server):
            restart(server, pid)
        check()
        call(channels[2], "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nb"))
        assert all(call(channel, "ModelReady", pb.ModelReadyRequest(name="nb")).ready for channel in channels)


def test_a_refused_load_has_the_status_of_one_server_and_is_logged_once(start, own):
    with start(own, *TWO) as server, connections(server.address) as channels:
        with pytest.raises(grpc.RpcError) as caught:
            call(channels[0], "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nope"))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "there is no such folder" in caught.value.details()
    assert len([line for line in server.lines if "there is no such folder" in line]) == 1


def test_shared_memory_and_settings_hold_for_all_workers_and_for_those_that_come_later(start, own):
    region = shared_memory.SharedMemory(create=True, size=X.nbytes)
    region.buf[: X.nbytes] = X.tobytes()
    try:
        with start(own, *TWO) as server, connections(server.address) as channels:
            register = pb.SystemSharedMemoryRegisterRequest(name="r", key=region.name, byte_size=X.nbytes)
            call(channels[0], "SystemSharedMemoryRegister", register)
            trace = pb.TraceSettingRequest(model_name="m")
            trace.settings["trace_rate"].value.append("7")
            call(channels[1], "TraceSetting", trace)
            quiet = pb.LogSettingsRequest()
            quiet.settings["log_info"].bool_param = False
            call(channels[2], "LogSettings", quiet)
            restart(server, workers(server)[0])
            for channel in channels:
                request = pb.ModelInferRequest(model_name="m")
                tensor = request.inputs.add(name="x", datatype="FP32", shape=X.shape)
                tensor.parameters["shared_memory_region"].string_param = "r"
                tensor.parameters["shared_memory_byte_size"].int64_param = X.nbytes
                output = call(channel, "ModelInfer", request).raw_output_contents[0]
                np.testing.assert_array_equal(np.frombuffer(output, np.float32), 3 * X[0])
                read = call(channel, "TraceSetting", pb.TraceSettingRequest(model_name="m"))
                assert list(read.settings["trace_rate"].value) == ["7"]
                assert not call(channel, "LogSettings").settings["log_info"].bool_param
            call(channels[3], "SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest())
            restart(server, workers(server)[0])
            assert not any(call(channel, "SystemSharedMemoryStatus").regions for channel in channels)
    finally:
        region.close()
        region.unlink()


def test_every_worker_answers_during_the_drain_delay_and_reports_not_serving(start, own):
    with start(own, *TWO, "--drain-delay", "60") as server, connections(server.address) as channels:
        for channel in channels:
            infer(channel)
        server.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        for channel in channels:
            wait_until(lambda channel=channel: check(channel) == health.HealthCheckResponse.NOT_SERVING)
        while time.monotonic() < begun + 1.5:  # without the delay a server refuses new calls after a second at most
            for channel in channels:
                infer(channel)
        with connections(server.address) as others:
            for channel in others:
                infer(channel)
        assert listeners(server.address) == workers(server)
        assert server.stop() == 1  # the second signal ends the rest of the delay


def test_a_model_that_fails_makes_the_whole_not_ready(start, own):
    write_model(own / "bad", SCALE.replace("FACTOR", "2.0"))
    (own / "bad" / "1" / "model.onnx").write_bytes(b"no model")
    with start(own, *TWO, ready=False) as server, connections(server.address) as channels:
        assert "2 workers, not ready" in server.announced
        assert not any(call(channel, "ServerReady").ready for channel in channels)
        write_model(own / "bad", SCALE.replace("FACTOR", "2.0"))
        call(channels[0], "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="bad"))
        wait_until(lambda: all(call(channel, "ServerReady").ready for channel in channels))


def test_a_version_that_was_overwritten_in_place_has_one_answer_in_all_workers(start, own):
    def answers(server):
        with connections(server.address) as channels:
            return {np.frombuffer(infer(channel).raw_output_contents[0], np.float32)[0] for channel in channels}

    with start(own, *TWO) as server:
        before = answers(server)
        write_model(own / "m", SCALE.replace("FACTOR", "7.0"))
        os.kill(workers(server)[1], signal.SIGKILL)
        wait_until(lambda: any("could not start: 'm' version 1 has changed on disk" in line for line in server.lines))
        assert answers(server) == before
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(listeners(server.address)) == 2, 120)
        (after,) = answers(server)
        assert after != before.pop()


@pytest.mark.parametrize("many", ["1", "2"])
def test_a_second_server_on_the_port_is_refused(two, repository, many):
    done = serve_once("--repository", str(repository), "--listen", two.address, "--workers", many)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
