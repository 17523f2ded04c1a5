"""Several workers on one port: to the client they are one server, whatever happens to one of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import shared_memory
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.protos import health
from normfold.serving.client.client import Client, ClientError
from normfold.serving.frontends import FRONTENDS
from normfold.serving.load.processes import listeners, tree

from .conftest import SCALE, write_model

X = np.array([[1, 2, 3, 4]], np.float32)
TWO = ("--workers", "2")

#: The kernel distributes connections by a hash: once in 32768 times this many all go to the same one of two workers.
CONNECTIONS = 16


def workers(server) -> list[int]:
    """The process ids of the workers below a running server."""
    return sorted(set(tree([server.process.pid])) - {server.process.pid})


@contextlib.contextmanager
def connections(address: str, count: int = CONNECTIONS):
    """Channels that share no connection."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50))
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(grpc.insecure_channel(address, options=options)) for _ in range(count)]


def call(channel, method, request=None, **options):
    request = getattr(pb, f"{method}Request")() if request is None else request
    rpc = channel.unary_unary(
        f"/inference.GRPCInferenceService/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=getattr(pb, f"{method}Response").FromString,
    )
    return rpc(request, timeout=30, wait_for_ready=True, **options)


def infer(channel, model="m", **options):
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[X.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=X.shape)
    return call(channel, "ModelInfer", request, **options)


def check(channel) -> int:
    """The health of the server."""
    rpc = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=health.HealthCheckResponse.FromString,
    )
    return rpc(health.HealthCheckRequest(), timeout=30, wait_for_ready=True).status


def counted(channel, model: str) -> int:
    stats = call(channel, "ModelStatistics", pb.ModelStatisticsRequest(name=model)).model_stats
    return sum(each.inference_count for each in stats)


def restart(server, pid: int) -> None:
    """Kill one worker, and wait until another has taken its place and listens."""
    before = set(workers(server))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: (set(workers(server)) - before) & set(listeners(server.address)))


@pytest.fixture
def own(tmp_path) -> Path:
    """A repository for tests that change it: m and nb."""
    for name, factor in (("m", "3.0"), ("nb", "2.0")):
        write_model(tmp_path / "repository" / name, SCALE.replace("FACTOR", factor))
    return tmp_path / "repository"


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
        done = _serve("--repository", str(repository), "--listen", server.address, "--frontend", frontend, *TWO)
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


def test_a_killed_worker_loses_only_its_own_calls_and_its_counters_go_on(start, own):
    with start(own, *TWO) as server, connections(server.address) as channels:
        stopping = threading.Event()
        failures: list[grpc.RpcError] = []
        counts: list[int] = []
        answered = [0] * 8

        def ask(number: int) -> None:
            while not stopping.is_set():
                try:
                    infer(channels[number])
                    answered[number] += 1
                except grpc.RpcError as error:
                    failures.append(error)

        def count() -> None:
            while not stopping.is_set():
                with contextlib.suppress(grpc.RpcError):
                    counts.append(counted(channels[8], "m"))
                time.sleep(0.02)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        threads.append(threading.Thread(target=count))
        for thread in threads:
            thread.start()
        kills = 2
        for _ in range(kills):
            before = sum(answered)
            wait_until(lambda before=before: sum(answered) > before + 50)
            restart(server, workers(server)[0])
        stopping.set()
        for thread in threads:
            thread.join()
        assert {error.code() for error in failures} <= {grpc.StatusCode.UNAVAILABLE}
        # each of the eight has one call under way, and may start one more on a connection to the dying process
        assert len(failures) <= kills * 8 * 2
        assert counts == sorted(counts)
        assert counted(channels[9], "m") <= sum(answered) + len(failures)
        assert call(channels[10], "ServerReady").ready
    assert len([line for line in server.lines if "was ended by SIGKILL" in line]) == kills


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_is_on_its_way_in_every_worker(start, own, number):
    with start(own, *TWO) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(8)]
        failures: list[Exception] = []
        asking = threading.Barrier(len(clients) + 1)

        def ask(client: Client) -> None:
            client.infer("m", {"x": X})
            asking.wait(30)
            while True:
                try:
                    np.testing.assert_array_equal(client.infer("m", {"x": X})["y"], 3 * X)
                except ClientError as error:
                    if error.status is not grpc.StatusCode.UNAVAILABLE:
                        failures.append(error)
                    return

        threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        asking.wait(30)
        code = server.stop(number)
        for thread in threads:
            thread.join()
    assert code == 0
    assert failures == []
    assert server.lines[-1] == "stopped"


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


def test_a_worker_that_is_asked_to_stop_is_replaced(start, own):
    with start(own, *TWO) as server:
        pids = workers(server)
        os.kill(pids[0], signal.SIGTERM)
        wait_until(lambda: len(workers(server)) == 2 and pids[0] not in workers(server))
        with Client(server.address) as client:
            assert client.is_ready()


def test_health_goes_on_serving_while_a_worker_is_replaced(start, own):
    with start(own, *TWO) as server, connections(server.address) as channels:
        pids = workers(server)
        os.kill(pids[0], signal.SIGKILL)
        assert {check(channel) for channel in channels} == {health.HealthCheckResponse.SERVING}


def test_a_model_that_fails_makes_the_whole_not_ready(start, own):
    write_model(own / "bad", SCALE.replace("FACTOR", "2.0"))
    (own / "bad" / "1" / "model.onnx").write_bytes(b"no model")
    with start(own, *TWO, ready=False) as server, connections(server.address) as channels:
        assert "2 workers, not ready" in server.lines[-1]
        assert not any(call(channel, "ServerReady").ready for channel in channels)
        write_model(own / "bad", SCALE.replace("FACTOR", "2.0"))
        call(channels[0], "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="bad"))
        wait_until(lambda: all(call(channel, "ServerReady").ready for channel in channels))


#: Root may read every folder; a process that root starts may not, once these capabilities cannot be passed on.
ROOT_LIKE_OTHERS = """
import ctypes
DAC_OVERRIDE, DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24
for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
"""


def test_an_unreadable_folder_costs_only_its_own_model_in_every_worker_also_a_later_one(
    start, own, tmp_path, monkeypatch
):
    (tmp_path / "sitecustomize.py").write_text(ROOT_LIKE_OTHERS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")])))
    (own / "nb").chmod(0)
    looks = [sys.executable, "-c", f"import os, subprocess; subprocess.run(['ls', {str(own / 'nb')!r}], check=True)"]
    if subprocess.run(looks, capture_output=True, check=False).returncode == 0:
        pytest.skip("this process may read every folder, and cannot give that up")
    try:
        with start(own, *TWO, ready=False) as server, connections(server.address) as channels:
            for pid in (0, workers(server)[0]):
                if pid:
                    restart(server, pid)
                for channel in channels:
                    assert infer(channel).model_version == "1"
                    rows = {row.name: (row.state, row.reason) for row in call(channel, "RepositoryIndex").models}
                    assert rows["m"][0] == "READY"
                    assert rows["nb"][0] == "UNAVAILABLE"
                    assert "config.pbtxt cannot be read: Permission denied" in rows["nb"][1]
                    assert not call(channel, "ServerReady").ready
            (own / "nb").chmod(0o755)
            call(channels[0], "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nb"))
            for channel in channels:
                assert infer(channel, "nb").model_version == "1"
    finally:
        (own / "nb").chmod(0o755)


def test_a_worker_that_is_replaced_serves_the_versions_that_the_others_serve(start, own):
    with start(own, *TWO) as server, connections(server.address) as channels:
        (own / "m" / "2").mkdir()
        (own / "m" / "2" / "model.onnx").write_bytes(b"half a version")
        write_model(own / "nb", SCALE.replace("FACTOR", "9.0"), 2)
        write_model(own / "never", SCALE.replace("FACTOR", "9.0"))
        (own / "half" / "1").mkdir(parents=True)
        (own / "half" / "1" / "model.onnx").write_bytes(b"half a model")
        for pid in workers(server):
            restart(server, pid)
            for channel in channels:
                assert infer(channel).model_version == "1"
                assert infer(channel, "nb").model_version == "1"
                assert call(channel, "ServerReady").ready
                assert not call(channel, "ModelReady", pb.ModelReadyRequest(name="never")).ready
        write_model(own / "m", SCALE.replace("FACTOR", "4.0"), 2)
        call(channels[0], "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
        write_model(own / "m", SCALE.replace("FACTOR", "5.0"), 3)
        restart(server, workers(server)[0])
        assert {infer(channel).model_version for channel in channels} == {"2"}


def test_a_worker_without_a_model_that_the_others_serve_takes_no_connections(start, own):
    with start(own, *TWO) as server:
        shutil.rmtree(own / "m" / "1")
        killed = workers(server)[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: any("'m' version 1, which the other workers serve, cannot" in line for line in server.lines))
        for _ in range(2):
            with connections(server.address) as channels:
                for channel in channels:
                    assert infer(channel).model_version == "1"
                    assert call(channel, "ServerReady").ready
        write_model(own / "m", SCALE.replace("FACTOR", "3.0"))
        wait_until(lambda: len(listeners(server.address)) == 2, 120)
    assert any("could not start: 'm' version 1, which the other workers serve" in line for line in server.lines)


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


def test_a_hang_up_ends_no_worker(start, own):
    with start(own, *TWO) as server, connections(server.address) as channels:
        before = workers(server)
        for pid in before:
            os.kill(pid, signal.SIGHUP)
        write_model(own / "m", SCALE.replace("FACTOR", "4.0"), 2)
        os.kill(before[0], signal.SIGHUP)
        wait_until(lambda: {infer(channel).model_version for channel in channels} == {"2"})
        assert workers(server) == before


def test_a_worker_that_is_deaf_is_replaced(start, own):
    with start(own, *TWO, "--worker-seconds", "2") as server, connections(server.address) as channels:
        pids = workers(server)
        os.kill(pids[0], signal.SIGSTOP)
        wait_until(lambda: len(workers(server)) == 2 and pids[0] not in workers(server), 120)
        wait_until(lambda: listeners(server.address) == workers(server), 120)
        for channel in channels:
            infer(channel)
    assert any("has not answered for 2 s and is ended" in line for line in server.lines)
    assert len([line for line in server.lines if "was ended by SIGKILL" in line]) == 1


@pytest.mark.parametrize("many", ["1", "2"])
def test_a_second_server_on_the_port_is_refused(two, repository, many):
    done = _serve("--repository", str(repository), "--listen", two.address, "--workers", many)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_port_that_others_share_is_refused(repository):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = _serve("--repository", str(repository), "--listen", f"127.0.0.1:{taken.getsockname()[1]}", *TWO)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--repository", "/nowhere"], "does not exist"),
        (["--repository", "{repository}", "--device", "tpu"], "use cpu, cuda, cuda:N"),
        (["--repository", "{repository}", "--listen", "8001"], "is not host:port"),
        (["--repository", "{repository}", "--listen", "unix:/tmp/s"], "a unix socket is served by one worker"),
    ],
)
def test_what_cannot_be_served_is_reported_once(repository, options, said):
    done = _serve(*(option.format(repository=repository) for option in options), *TWO)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_device_that_is_not_there_is_said_once_with_its_exit_code(repository):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    done = _serve("--repository", str(repository), "--device", "cuda", *TWO)
    assert done.returncode == 3
    assert "built without CUDA" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_workers_that_crash_at_the_start_end_the_server_with_one_message(repository, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'normfold.serving.workers.worker' in sys.orig_argv: os._exit(7)\n", encoding="utf-8"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = _serve("--repository", str(repository), "--listen", "127.0.0.1:0", *TWO, PYTHONPATH=path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("ended with exit code 7, 3 times in a row before it was ready")
    assert done.stderr.count("Error: ") == 1
    assert "Traceback" not in done.stderr


def test_workers_end_with_a_supervisor_that_is_killed(start, own):
    with start(own, *TWO) as server:
        pids = workers(server)
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_second_signal_ends_all_at_once(start, own):
    with start(own, *TWO) as server:
        pids = workers(server)
        os.kill(pids[0], signal.SIGSTOP)  # it no longer answers the supervisor
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not Path(f"/proc/{pids[1]}").exists())
        assert server.process.poll() is None
        assert server.stop() == 1
        wait_until(lambda: not Path(f"/proc/{pids[0]}").exists())


def _serve(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "normfold", "serve", *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
