"""What ends several workers, or keeps them from starting, is said once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.waiting import wait_until

from normfold.serving.client.client import Client, ClientError

from .several_workers import TWO, X, serve_once, workers


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


def test_a_port_that_others_share_is_refused(repository):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = serve_once("--repository", str(repository), "--listen", f"127.0.0.1:{taken.getsockname()[1]}", *TWO)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr


def test_a_device_that_is_not_there_is_said_once_with_its_exit_code(repository):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    done = serve_once("--repository", str(repository), "--device", "cuda", *TWO)
    assert done.returncode == 3
    assert "built without CUDA" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_workers_that_crash_at_the_start_end_the_server_with_one_message(repository, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'normfold.serving.workers.worker' in sys.orig_argv: os._exit(7)\n", encoding="utf-8"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    done = serve_once("--repository", str(repository), "--listen", "127.0.0.1:0", *TWO, PYTHONPATH=path)
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
