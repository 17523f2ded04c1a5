from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from normfold import whole_file
from normfold.whole_file import alone_in, write_first, write_new, write_whole, written_whole


def by_parts(path: Path, content: bytes) -> None:
    with written_whole(path) as file:
        for byte in content:
            file.write(bytes([byte]))


@pytest.mark.parametrize("write", [write_whole, by_parts])
def test_a_file_is_replaced_and_nothing_is_left_beside_it(write: Callable[[Path, bytes], None], tmp_path: Path) -> None:
    file = tmp_path / "weights"
    for content in (b"old", b"new"):
        write(file, content)
        assert file.read_bytes() == content
        assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("write", [write_whole, write_first, by_parts])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(
    write: Callable[[Path, bytes], object],
    error: type[BaseException] | BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "weights"
    write_whole(file, b"old")

    def interrupted(_: int) -> None:
        raise error

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        write(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_of_the_writer_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "table"
    write_whole(file, b"old")
    with pytest.raises(TypeError), written_whole(file) as opened:
        opened.writelines([b"half of the n", None])  # type: ignore[list-item]
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_content_is_on_the_disk_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, seen = tmp_path / "weights", list[bool]()
    monkeypatch.setattr("os.fsync", lambda _: seen.append(file.exists()))
    write_whole(file, b"new")
    assert seen == [False]
    assert file.exists()


def test_the_first_file_of_a_name_stays(tmp_path: Path) -> None:
    file = tmp_path / "measurement"
    assert write_first(file, b"first")
    assert not write_first(file, b"second")
    assert file.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_system_without_hard_links_keeps_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    file = tmp_path / "measurement"
    assert write_first(file, b"first")
    assert file.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [file]


def test_a_new_file_replaces_none(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    write_new(file, b"first")
    with pytest.raises(FileExistsError):
        write_new(file, b"second")
    assert file.read_bytes() == b"first"


def test_a_name_of_the_longest_length_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("n" * 255)
    write_whole(file, b"content")
    assert file.read_bytes() == b"content"


@pytest.mark.parametrize("write", [write_whole, write_first])
def test_an_error_names_the_file_and_not_the_one_that_takes_its_place(
    write: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    file = tmp_path / "no folder" / "file"
    with pytest.raises(FileNotFoundError) as caught:
        write(file, b"new")
    assert caught.value.filename == str(file)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
@pytest.mark.parametrize("write", [write_whole, by_parts])
def test_a_file_that_is_replaced_keeps_its_permissions(
    write: Callable[[Path, bytes], None], mode: int, tmp_path: Path
) -> None:
    file = tmp_path / "config.pbtxt"
    file.write_bytes(b"old")
    file.chmod(mode)
    before = os.umask(0o077 if mode == 0o644 else 0)
    try:
        write(file, b"new")
    finally:
        os.umask(before)
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"new", mode)


def test_root_leaves_a_file_that_it_replaces_to_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, given = tmp_path / "tokens", list[tuple[int, int]]()
    monkeypatch.setattr("os.fchown", lambda descriptor, user, group: given.append((user, group)))
    write_whole(file, b"old")
    write_whole(file, b"new")
    assert given == [(os.getuid(), file.stat().st_gid)]


def test_a_file_of_another_user_stays_with_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may read it by its group alone."""
    file, given = tmp_path / "tokens", list[int]()

    def fchown(descriptor: int, user: int, group: int) -> None:
        if user != -1:
            raise PermissionError(1, "Operation not permitted")
        given.append(group)

    monkeypatch.setattr("os.fchown", fchown)
    write_whole(file, b"old")
    file.chmod(0o640)
    write_whole(file, b"new")
    assert (given, stat.S_IMODE(file.stat().st_mode)) == ([file.stat().st_gid], 0o640)


def test_a_file_system_without_owners_and_permissions_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, *arguments: int) -> None:
        raise OSError(22, "Invalid argument")

    file = tmp_path / "config.pbtxt"
    write_whole(file, b"old")
    monkeypatch.setattr("os.fchown", refuse)
    monkeypatch.setattr("os.fchmod", refuse)
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"


def test_a_wait_for_another_process_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export whose repository another program had locked waited without a word."""
    monkeypatch.setattr(whole_file, "PATIENCE_SECONDS", 0.05)
    said: list[str] = []
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)

    def waiting(why: str) -> None:
        said.append(why)
        os.close(other)  # which gives the lock back

    with alone_in(tmp_path, waiting):
        assert len(said) == 1
    assert said[0] in {
        f"waiting for {who}, which writes in '{tmp_path}'" for who in (f"process {os.getpid()}", "another process")
    }
    with alone_in(tmp_path, said.append):
        assert len(said) == 1


def test_a_wait_goes_on_where_nobody_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process did not wait then, and wrote at the same time as the other one."""
    monkeypatch.setattr(whole_file, "PATIENCE_SECONDS", 0.0)
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)

    def waiting(why: str) -> None:
        os.close(other)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with alone_in(tmp_path, waiting):
        again = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(again)
