"""A client's text costs the event loop as much as its first characters do, however long it is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.catalog.version_text import parse_version
from normfold.serving.errors import InvalidRequest, Overloaded, ServingError
from normfold.serving.process.log_lines import JsonLines, Lines
from normfold.serving.process.logs import LogSettings
from normfold.serving.rpc.methods import _Refusals, status_of
from normfold.serving.service import reflection
from normfold.serving.wording import Place, RequestPrefix, listed, near, quoted


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("normfold", logging.INFO, "f", 1, "model %s", (text,), None)


def log_format(text: str) -> None:
    LogSettings().update({"log_format": pb.LogSettingsRequest.SettingValue(string_param=text)})


WAYS: dict[str, Callable[[str], Any]] = {
    "quoted": quoted,
    "listed": lambda text: listed([text]),
    "near": lambda text: near(text, ["model"]),
    "place": lambda text: str(Place(text, text)),
    "prefix": lambda text: str(RequestPrefix(text)),
    "version": parse_version,
    "spaces and a version": lambda text: parse_version(text.replace("\n", " ") + "x"),
    "status": lambda text: status_of(InvalidRequest(text), "/s/M"),
    "refusal": lambda text: _Refusals().note("/s/M", *status_of(Overloaded(text, 1.0), "/s/M")),
    "line": lambda text: Lines({"log_format": "default"}).format(record(text)),
    "line of JSON": lambda text: JsonLines().format(record(text)),
    "symbol": lambda text: reflection._file_of(text.replace("\n", "a.")),
    "log_format": log_format,
}


def work(function: Callable[[], Any]) -> int:
    """How many functions ``function`` calls, whatever it raises."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    except (ServingError, KeyError):
        pass
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("way", WAYS)
def test_a_longer_text_is_no_more_work(way):
    shorter, longer = "\n" * 20_000, "\n" * 80_000
    work(lambda: WAYS[way](shorter))  # what is made at the first call
    assert work(lambda: WAYS[way](longer)) <= work(lambda: WAYS[way](shorter)) + 5


def test_of_many_names_a_wrong_one_is_compared_with_some():
    few, many = ([f"model-{n:06}" for n in range(count)] for count in (400, 3200))
    assert near("modle-000000", many) == near("modle-000000", few) == "; did you mean 'model-000000'?"
    assert work(lambda: near("modle-x", many)) <= work(lambda: near("modle-x", few))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x" * 100, "'" + "x" * 100 + "'"),
        ("x" * 101, "'" + "x" * 100 + "…'"),
        ("\n" * 50, "'" + "\\n" * 50 + "'"),
        ("\n" * 51, "'" + "\\n" * 50 + "…'"),
        ("\n" * 1000, "'" + "\\n" * 50 + "…'"),
    ],
)
def test_what_is_shown_is_cut_after_it_was_escaped(text, shown):
    assert quoted(text) == shown
