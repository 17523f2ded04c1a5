"""What a long form shows while it runs."""

from __future__ import annotations

import io

import pytest
from tests.reliability import __main__ as long_form
from tests.reliability import progress
from tests.reliability.starts import Starts


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "every", "shown"),
    [
        (Terminal(), 60.0, "\r1 of 2 servers started and ended\r2 of 2 servers started and ended\n"),
        (io.StringIO(), 0.0, "1 of 2 servers started and ended\n2 of 2 servers started and ended\n"),
        (io.StringIO(), 1e6, ""),
    ],
    ids=["terminal", "file", "file, not yet"],
)
def test_the_starts_are_counted_for_whoever_waits(monkeypatch, tmp_path, stream, every, shown):
    def start_often(repository, times, options, note, seconds):
        for number in range(times):
            note(f"{number}: ended")
        return Starts()

    monkeypatch.setattr(progress, "EVERY_SECONDS", every)
    monkeypatch.setattr(long_form, "start_often", start_often)
    monkeypatch.setattr(long_form.sys, "stderr", stream)
    long_form._start(2, 1.0, tmp_path / "log")
    assert stream.getvalue() == shown
    assert (tmp_path / "log").read_text() == "0: ended\n1: ended\n"


def test_a_shorter_text_leaves_nothing_of_the_longer_one():
    stream = Terminal()
    with progress.Progress(stream) as shown:
        shown.show("ten of ten")
        shown.show("none")
    assert stream.getvalue() == "\rten of ten\rnone      \n"
