"""A server that polls takes new versions, refuses bad ones, unloads what is gone; SIGHUP makes any server look."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from onnx import parser
from tests.waiting import wait_until

from normfold.serving.catalog.entry import NOT_LOADED
from normfold.serving.client.client import Client, ClientError
from normfold.serving.load.processes import listeners

from .conftest import SCALE, write_model
from .several_workers import workers

X = np.array([[1, 2, 3, 4]], np.float32)
POLL = ("--model-control", "poll", "--poll-seconds", "0.2")


@pytest.fixture
def folder(tmp_path):
    write_model(tmp_path / "r/m", SCALE.replace("FACTOR", "2.0"), 1)
    write_model(tmp_path / "r/other", SCALE.replace("FACTOR", "9.0"), 1)
    return tmp_path / "r"


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def factor(client, model="m") -> float:
    return float(client.infer(model, X)["y"][0, 0])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_files_decide_what_is_in_service(folder, start, workers):
    with start(folder, *POLL, "--workers", workers) as server, Client(server.address) as client:
        with pytest.raises(ClientError, match=r"this server polls its repository; .* in service within 0\.4 s"):
            client.load("m")
        content = parser.parse_model(SCALE.replace("FACTOR", "3.0")).SerializeToString()
        (folder / "m/2").mkdir()
        (folder / "m/2/model.onnx").write_bytes(content)
        wait_until(lambda: factor(client) == 3)
        (folder / "m/3").mkdir()
        (folder / "m/3/model.onnx").write_bytes(b"nothing")
        wait_until(lambda: any(state.version == "3" and state.reason for state in client.models()))
        assert factor(client) == 3
        assert client.is_ready()
        write_model(folder / "new", SCALE.replace("FACTOR", "4.0"), 1)
        wait_until(lambda: client.is_model_ready("new"))
        assert factor(client, "new") == 4
        shutil.rmtree(folder / "other")
        wait_until(lambda: not client.is_model_ready("other"))
        assert client.is_ready()


def test_what_changes_while_the_polling_worker_is_dead_is_loaded(folder, start):
    with start(folder, *POLL, "--workers", "2") as server, Client(server.address) as client:
        first = next(pid for pid in workers(server) if b"workers.worker\x001\0" in command(pid))
        os.kill(first, signal.SIGSTOP)  # it looks no more
        write_model(folder / "m", SCALE.replace("FACTOR", "3.0"), 2)
        write_model(folder / "new", SCALE.replace("FACTOR", "4.0"), 1)
        os.kill(first, signal.SIGKILL)

        def loaded() -> bool:
            with contextlib.suppress(ClientError):  # the connection was to the worker that is dead
                return factor(client) == 3 and factor(client, "new") == 4
            return False

        wait_until(loaded)
        wait_until(
            lambda: {("m", "2"), ("new", "1")} <= {(one.model, one.version) for one in client.models() if one.ready}
        )


def test_what_is_removed_while_the_polling_worker_is_dead_is_unloaded_and_the_server_is_whole_again(folder, start):
    with start(folder, *POLL, "--workers", "2") as server, Client(server.address) as client:
        first = next(pid for pid in workers(server) if b"workers.worker\x001\0" in command(pid))
        os.kill(first, signal.SIGSTOP)  # it looks no more
        shutil.rmtree(folder / "other")
        write_model(folder / "m", SCALE.replace("FACTOR", "3.0"), 2)
        shutil.rmtree(folder / "m/1")
        os.kill(first, signal.SIGKILL)

        def followed() -> bool:
            with contextlib.suppress(ClientError):  # the connection was to the worker that is dead
                return factor(client) == 3 and not client.is_model_ready("other")
            return False

        wait_until(followed)
        wait_until(lambda: len(listeners(server.address)) == 2, 120)
        assert client.is_ready()


@pytest.mark.parametrize("options", [POLL, ("--model-control", "explicit")])
def test_what_was_left_out_stays_out(folder, start, options):
    write_model(folder / "third", SCALE.replace("FACTOR", "5.0"), 1)
    only = ("--load-model", "m", "--load-model", "other")
    with start(folder, *only, *options) as server, Client(server.address) as client:
        if options != POLL:
            client.unload("other")
        for name in ("third", "other", "m", "new"):
            write_model(folder / name, SCALE.replace("FACTOR", "6.0"), 2)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: factor(client) == 6)
        ready = {state.model for state in client.models() if state.ready}
        assert ready == ({"m", "other"} if options == POLL else {"m"})
        assert not any("third" in line or "new" in line for line in server.lines)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_lazy_models_follow_the_files_too(folder, start, workers):
    with (
        start(folder, *POLL, "--load", "lazily", "--workers", workers) as server,
        Client(server.address) as client,
    ):
        assert server.lines[-2].strip() == "2 models, each loaded by its first request"
        assert factor(client) == 2
        for name in ("m", "new"):
            write_model(folder / name, SCALE.replace("FACTOR", "3.0"), 2)
        wait_until(lambda: factor(client) == 3)
        wait_until(lambda: client.is_model_ready("new"))
        assert {state.reason for state in client.models() if state.model == "new"} == {NOT_LOADED}
        assert factor(client, "new") == 3
        shutil.rmtree(folder / "other")
        wait_until(lambda: not client.is_model_ready("other"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_hang_up_makes_a_server_look_that_does_not_poll(folder, start, workers):
    with start(folder, "--workers", workers) as server, Client(server.address) as client:
        write_model(folder / "m", SCALE.replace("FACTOR", "3.0"), 2)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: factor(client) == 3)


def test_a_repository_that_is_away_for_a_while_changes_nothing(folder, start):
    with start(folder, *POLL) as server, Client(server.address) as client:
        folder.rename(folder.parent / "away")
        wait_until(
            lambda: any(
                "cannot be read: No such file or directory; the models that answer" in line for line in server.lines
            )
        )
        assert factor(client) == 2
        assert client.is_ready()
        (folder.parent / "away").rename(folder)
        write_model(folder / "m", SCALE.replace("FACTOR", "3.0"), 2)
        wait_until(lambda: factor(client) == 3)
    assert len([line for line in server.lines if "the models that answer go on answering" in line]) == 1


@pytest.mark.parametrize("options", [("--workers", "1"), ("--workers", "2"), ("--load", "lazily")])
def test_a_server_that_polls_waits_for_its_first_model(tmp_path, start, options):
    empty = tmp_path / "empty"
    empty.mkdir()
    with start(empty, *POLL, *options, ready=False) as server, Client(server.address) as client:
        assert "not ready: the repository holds no NAME/1/model.onnx yet" in server.announced
        assert not client.is_ready()
        write_model(empty / "m", SCALE.replace("FACTOR", "3.0"), 1)
        wait_until(client.is_ready)
        assert factor(client) == 3


def test_a_first_model_that_does_not_load_is_no_readiness(tmp_path, start):
    empty = tmp_path / "empty"
    empty.mkdir()
    with start(empty, *POLL, ready=False) as server, Client(server.address) as client:
        (empty / "m/1").mkdir(parents=True)
        (empty / "m/1/model.onnx").write_bytes(b"nothing")
        wait_until(lambda: any(state.reason for state in client.models()))
        assert not client.is_ready()
        shutil.rmtree(empty / "m")
        wait_until(lambda: not client.models())
        assert not client.is_ready()
        write_model(empty / "m", SCALE.replace("FACTOR", "3.0"), 2)
        wait_until(client.is_ready)
