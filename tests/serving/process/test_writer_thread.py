"""Who writes to the log never waits for its reader; what is lost is counted."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from normfold.serving.process import writer_thread
from normfold.serving.process.writer_thread import MOST_WAITING, WriterThread

#: A line of 1 KB; a pipe takes 64 KB.
LINE = "line {:07} " + "x" * 1010 + "\n"


class Pipe:
    """A pipe with a WriterThread at its one end, in whose lines the log goes, too."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.writer = WriterThread(os.fdopen(self.writing, "w", encoding="utf-8", closefd=False))
        self._read: list[bytes] = []

    def read_on(self) -> threading.Thread:
        """Read until the other end is closed."""
        thread = threading.Thread(target=self._read_all, daemon=True)
        thread.start()
        return thread

    def _read_all(self) -> None:
        while data := os.read(self.reading, 1 << 16):
            self._read.append(data)

    def lines(self, reader: threading.Thread) -> list[str]:
        """All lines, once everything is written."""
        self.writer.wait(60)
        os.close(self.writing)
        reader.join()
        return b"".join(self._read).decode().splitlines()


@pytest.fixture
def pipe(monkeypatch) -> Iterator[Pipe]:
    monkeypatch.setattr(writer_thread, "_WRITERS", [])
    pipe = Pipe()
    handler = logging.StreamHandler(pipe.writer)
    writer_thread.log.addHandler(handler)
    yield pipe
    writer_thread.log.removeHandler(handler)
    os.close(pipe.reading)
    with contextlib.suppress(OSError):
        os.close(pipe.writing)


def test_a_line_is_dropped_and_counted_where_the_reader_hangs(pipe):
    count = 2 * MOST_WAITING // len(LINE) + 200
    for number in range(count):
        pipe.writer.write(LINE.format(number))  # would wait without end in the place of line 64
    lines = pipe.lines(pipe.read_on())
    numbers = [int(line.split()[1]) for line in lines if line.startswith("line ")]
    said = [line for line in lines if not line.startswith("line ")]  # more than once if the thread began late
    lost = sum(int(re.match(r"(\d+) lines could not be written", line)[1]) for line in said)
    assert numbers == sorted(set(numbers))  # those that are written are whole and in order
    assert numbers[:1000] == list(range(1000))
    assert lost == count - len(numbers)
    assert lost > 1000


def test_what_comes_after_lost_lines_comes_after_their_number(pipe):
    for number in range(2 * MOST_WAITING // len(LINE)):
        pipe.writer.write(LINE.format(number))
    reader = pipe.read_on()
    pipe.writer.wait(60)
    pipe.writer.write("again\n")
    lines = pipe.lines(reader)
    assert "could not be written" in lines[-2]
    assert lines[-1] == "again"


def test_the_end_does_not_wait_for_a_reader_that_hangs(pipe, monkeypatch):
    monkeypatch.setattr(writer_thread, "LAST_SECONDS", 0.01)
    for number in range(200):
        pipe.writer.write(LINE.format(number))
    writer_thread.finish()
    assert len(pipe.lines(pipe.read_on())) == 200


def test_an_end_that_does_not_block_is_waited_for(pipe):
    flags = fcntl.fcntl(pipe.writing, fcntl.F_GETFL)
    fcntl.fcntl(pipe.writing, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    for number in range(200):
        pipe.writer.write(LINE.format(number))
    assert len(pipe.lines(pipe.read_on())) == 200


def test_a_full_disk_loses_lines_until_there_is_room_again(pipe, tmp_path):
    there = os.dup(pipe.writing)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, pipe.writing)
    for number in range(3):
        pipe.writer.write(LINE.format(number))
        pipe.writer.wait(60)
    os.dup2(there, pipe.writing)
    os.close(full)
    os.close(there)
    for word in ("room", "again"):
        pipe.writer.write(f"{word}\n")
        pipe.writer.wait(60)
    lines = pipe.lines(pipe.read_on())
    assert lines[:2] == ["room", "again"]
    assert lines[2].startswith("3 lines could not be written")


def test_lines_at_the_end_of_a_process_are_written():
    program = (
        "import logging\n"
        "from normfold.serving.process.writer_thread import standard_error\n"
        "standard_error()\n"
        "for number in range(1000): logging.getLogger('a.library').error('line %d', number)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.splitlines() == [f"line {number}" for number in range(1000)]
