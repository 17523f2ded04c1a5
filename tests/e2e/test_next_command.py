"""After an export: a running server is asked to load the model, and nobody is waited for who is not there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from normfold.cli.next_command import after_export

from .conftest import SCALE, write_model

SERVE = "normfold serve --repository repository"


@pytest.fixture
def folder(tmp_path):
    write_model(tmp_path / "m", SCALE.replace("FACTOR", "2.0"), 1)
    return tmp_path


def command(model: str, address: str) -> str:
    return after_export(Path("repository"), model, 1, address)


def test_a_running_server_loads_the_model_that_its_repository_has(folder, start):
    with start(folder, "--load-seconds", "0") as server:
        write_model(folder / "new", SCALE.replace("FACTOR", "2.0"), 1)
        assert command("m", server.address) == "normfold load m"
        assert command("new", server.address) == "normfold load new"
        assert command("elsewhere", server.address) == SERVE


def test_a_server_that_does_not_let_clients_load_is_not_asked(folder, start):
    with start(folder, "--load-seconds", "0", "--model-control", "none") as server:
        assert command("m", server.address) == SERVE


def test_nobody_and_a_port_that_does_not_answer_are_not_waited_for():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert command("m", address) == SERVE  # nobody listens
        silent.listen()
        assert command("m", address) == SERVE


def test_a_version_that_would_not_be_served_is_put_in_service(folder):
    for version in (1, 2):
        write_model(
            folder / "m", SCALE.replace("FACTOR", "2.0"), version, "version_policy: { specific: { versions: 1 } }"
        )
    assert after_export(folder, "m", 2, "127.0.0.1:9") == f"normfold use m 2 --repository {folder}"
    assert after_export(folder, "m", 1, "127.0.0.1:9") == f"normfold serve --repository {folder}"


def test_a_folder_that_a_shell_would_take_apart_is_quoted():
    words = after_export(Path("my models"), "m", 1, "127.0.0.1:1")
    assert words == "normfold serve --repository 'my models'"
