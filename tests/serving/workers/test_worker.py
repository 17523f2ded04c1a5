"""How a worker ends, whatever happens in it: at once, with the exit code that tells whether all was answered."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from normfold.serving.process import loops
from normfold.serving.process.logs import LogSettings
from normfold.serving.settings import ServerConfig
from normfold.serving.workers import worker


class Ended(BaseException):
    """The process would have ended."""


def ended_with(monkeypatch, outcome) -> int:
    """The exit code of a worker whose event loop ends with ``outcome``."""

    def run(work):
        work.close()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(loops, "run", run)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "argv", ["worker", "1", "3", ServerConfig(Path("r")).to_json()])
    for name in ("faulthandler", "tuning"):
        monkeypatch.setattr(getattr(worker, name), "enable" if name == "faulthandler" else "tune", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    monkeypatch.setattr(logging, "lastResort", logging.lastResort)
    monkeypatch.setattr(LogSettings, "install", lambda *arguments: None)
    with pytest.raises(Ended) as caught:
        worker.main()
    return caught.value.args[0]


def test_a_log_on_a_full_disk_is_no_request_unanswered(monkeypatch):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        full.write("what Python has written there itself is still in its buffer")
        assert ended_with(monkeypatch, True) == 0
        assert ended_with(monkeypatch, False) == 1
        with contextlib.suppress(OSError):
            full.close()


def test_an_unexpected_error_ends_the_process_at_once_and_is_logged(monkeypatch, caplog):
    assert ended_with(monkeypatch, RuntimeError("a fault")) == 1
    assert "RuntimeError: a fault" in caplog.text


@pytest.mark.parametrize("where", ["before the loop", "in the loop"])
def test_a_worker_that_can_start_no_thread_says_so_in_one_line_without_a_traceback(where, monkeypatch, caplog):
    fault = RuntimeError("can't start new thread")

    def standard_error():
        raise fault

    if where == "before the loop":
        monkeypatch.setattr(worker.writer_thread, "standard_error", standard_error)
    assert ended_with(monkeypatch, fault) == 1
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.getMessage().startswith("the worker ends: no thread can be started; a limit of processes")
