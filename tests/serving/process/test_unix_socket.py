"""Unix sockets: two servers that start at the same time on one path."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from normfold.serving.process import unix_socket


def _listen(path: str) -> list[socket.socket]:
    return [unix_socket.listening(path, 1)]


def _take(path: str) -> list[socket.socket]:
    """As for grpcio, which binds to a name beside the real one."""
    taken = [socket.socket(socket.AF_UNIX)]

    def bind(beside: str) -> bool:
        taken[0].bind(beside)
        taken[0].listen(1)
        return True

    unix_socket.take(path, None, bind)
    return taken


@pytest.mark.parametrize("take", [_listen, _take])
def test_of_two_servers_that_find_the_same_left_over_socket_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, take: Callable[[str], list[socket.socket]]
) -> None:
    path, unlink, second = tmp_path / "s.sock", Path.unlink, list[Future[list[socket.socket]]]()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with ThreadPoolExecutor(1) as thread:

        def late(file: Path, missing_ok: bool = False) -> None:
            if file == path and not second:
                second.append(thread.submit(take, str(path)))
                wait(second, 0.2)
            unlink(file, missing_ok)

        monkeypatch.setattr(unix_socket, "LOCK_SECONDS", 20.0)
        monkeypatch.setattr(Path, "unlink", late)
        first = take(str(path))
        with pytest.raises(OSError, match="Address already in use"):
            second[0].result(20)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert [each.name for each in tmp_path.iterdir()] == ["s.sock"]
    first[0].close()


def test_a_folder_that_another_program_keeps_locked_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_socket, "LOCK_SECONDS", 0.01)
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    unix_socket.listening(str(tmp_path / "s.sock"), 1).close()
    os.close(folder)
