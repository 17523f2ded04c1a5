"""A worker that ends, hangs or lags behind is replaced, and the others go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.protos import health
from normfold.serving.client.client import Client
from normfold.serving.load.processes import listeners

from .conftest import SCALE, write_model
from .several_workers import TWO, call, check, connections, counted, infer, restart, workers


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
