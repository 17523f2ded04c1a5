"""Files are read again until they could be: after a failed read, a change of their permissions, or any other error."""

from __future__ import annotations

import asyncio
import logging

import pytest

from normfold.serving.process import file_watch
from normfold.serving.process.file_watch import FileWatch


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.001)
    path = tmp_path / "tokens"
    path.write_text("old")
    return path


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


def replace(path, text):
    beside = path.with_name("new")
    beside.write_text(text)
    beside.replace(path)


@pytest.mark.parametrize("error", [PermissionError("not yet"), RuntimeError("can't start new thread")])
def test_a_read_that_fails_is_tried_again_and_logged_once(path, caplog, error):
    reads, applied = [], []
    readable = False

    def read():
        reads.append(1)
        if not readable:
            raise error
        return path.read_text()

    async def run():
        nonlocal readable
        watch = FileWatch([path], read, PermissionError, applied.append)
        watch.start()
        replace(path, "new")
        await until(lambda: len(reads) > 3)
        readable = True
        await until(lambda: applied)
        seen = len(reads)
        await asyncio.sleep(0.02)
        assert len(reads) == seen, "it was read again without a change"
        await watch.stop()

    asyncio.run(run())
    assert applied == ["new"]
    assert sum("stays in force" in record.message for record in caplog.records) == 1
    assert str(error) in caplog.text


def test_a_change_of_the_permissions_alone_is_seen(path, caplog):
    caplog.set_level(logging.INFO)
    applied = []

    async def run():
        watch = FileWatch([path], path.read_text, OSError, applied.append)
        watch.start()
        before = path.stat()
        path.chmod(0o640)
        await until(lambda: applied)
        after = path.stat()
        assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
        await watch.stop()

    asyncio.run(run())
    assert "changed and was read again" in caplog.text


def test_a_file_that_is_empty_while_it_is_written_is_not_read(path, monkeypatch):
    """An editor empties it, and writes after the first look at that."""
    signature, applied, empty = file_watch._signature, [], []

    def look_and_write(paths):
        if empty and not path.stat().st_size:
            path.write_text("new")
        found = signature(paths)
        if not path.stat().st_size:
            empty.append(found)
        return found

    async def run():
        watch = FileWatch([path], path.read_text, OSError, applied.append)
        monkeypatch.setattr(file_watch, "_signature", look_and_write)
        path.write_text("")
        watch.start()
        await until(lambda: "new" in applied)
        await watch.stop()

    asyncio.run(run())
    assert applied == ["new"]


def test_what_cannot_be_applied_does_not_end_the_watch(path):
    applied = []

    def apply(text):
        applied.append(text)
        if text == "bad":
            raise ValueError("bad")

    async def run():
        watch = FileWatch([path], path.read_text, OSError, apply)
        watch.start()
        replace(path, "bad")
        await until(lambda: "bad" in applied)
        replace(path, "good")
        await until(lambda: "good" in applied)
        await watch.stop()

    asyncio.run(run())
