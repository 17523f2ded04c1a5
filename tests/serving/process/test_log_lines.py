"""A name in a message is never a line of the log."""

from __future__ import annotations

import datetime
import io
import json
import logging
import sys

import pytest
from onnx import TensorProto, helper

from normfold.protos import grpc_service as pb
from normfold.serving.process.log_lines import JsonLines, Lines, formatter
from normfold.serving.process.logs import LogSettings
from normfold.serving.rpc.caller import CALLER, trace_id

FORGED = "x\nI0101 00:00:00.000000 listening on 6.6.6.6:1 (gRPC), ready"


def forging() -> bytes:
    """A model whose input has a name with a newline."""
    x = helper.make_tensor_value_info(FORGED, TensorProto.FLOAT, ["N", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    graph = helper.make_graph([helper.make_node("Neg", [FORGED], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


@pytest.mark.parametrize("style", ["default", "ISO8601"])
def test_control_characters_in_a_message_are_escaped(style):
    record = logging.LogRecord("normfold", logging.INFO, "f", 1, "model %s\x1b[2J ü", ("a\nb",), None)
    line = Lines({"log_format": style}, "worker 1: ").format(record)
    assert line.endswith("worker 1: model a\\nb\\x1b[2J ü")


def test_a_traceback_keeps_its_lines():
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.LogRecord("normfold", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    assert "failed\nTraceback" in Lines({"log_format": "default"}).format(record)


def test_json_has_one_object_on_each_line_whatever_the_message_is():
    try:
        raise ValueError("x\ny")
    except ValueError:
        record = logging.LogRecord("normfold.x", logging.ERROR, "f", 1, "model %s ü", ("a\nb",), sys.exc_info())
    line = JsonLines(2).format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("error", "normfold.x", "model a\nb ü")
    assert found["worker"] == 2
    assert found["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert datetime.datetime.fromisoformat(found["time"]).timestamp() == pytest.approx(record.created, abs=1e-5)
    assert "trace_id" not in found


@pytest.mark.parametrize("character", ["\x85", "\x9b", "\u2028", "\u202e", "\udcff"])
def test_a_line_of_json_has_nothing_that_ends_a_line_or_steers_a_terminal(character):
    record = logging.LogRecord("normfold.access", logging.INFO, "f", 1, "", (), None)
    record.fields = {"id": f"ü{character}I0101 listening"}
    line = JsonLines().format(record)
    assert line.isprintable()
    assert json.loads(line)["id"] == f"ü{character}I0101 listening"


def test_text_beside_a_character_that_json_escapes_stays_readable():
    """The ideographic space is not printable for Python, and common in Japanese."""
    record = logging.LogRecord("n", logging.INFO, "f", 1, "東京\u3000大阪 \U000e0001 Zürich", (), None)
    line = JsonLines().format(record)
    assert r"東京\u3000大阪 \udb40\udc01 Zürich" in line
    assert json.loads(line)["message"] == record.msg


def test_json_names_the_trace_of_the_call_that_is_being_answered():
    class Call:
        connection = None
        waited_seconds = 0.0

        def left_seconds(self):
            return None

        def trace_headers(self):
            return {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}

    record = logging.LogRecord("normfold", logging.INFO, "f", 1, "hello", (), None)
    token = CALLER.set(Call())
    try:
        found = json.loads(JsonLines(None, trace_id).format(record))
    finally:
        CALLER.reset(token)
    assert found["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert "worker" not in found


@pytest.mark.parametrize(("form", "terminal", "kind"), [
    ("text", False, Lines), ("json", True, JsonLines), ("auto", True, Lines), ("auto", False, JsonLines),
])  # fmt: skip
def test_auto_is_for_people_on_a_terminal_only(form, terminal, kind):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    assert type(formatter(form, stream, {"log_format": "default"})) is kind


def test_the_name_of_an_input_cannot_forge_a_line(serve, tmp_path, models, ask):
    models.write(tmp_path / "m", forging())
    stream = io.StringIO()
    with serve(tmp_path) as server:
        logs = LogSettings()
        handler = logs.install(stream)
        try:
            server.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
            with pytest.raises(Exception, match=r"x.nI0101") as caught:
                server.infer(ask("m", x=[[1, 2]]))
        finally:
            logging.getLogger("normfold").removeHandler(handler)
            logging.getLogger("normfold").propagate = True
        (said,) = [line for line, _ in server.server.models()]
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3  # that there is no manifest, that it is loaded, that the request is refused
    assert not any(line.startswith("I0101") for line in lines)
    assert "\n" not in said
    assert "\n" not in caught.value.details()
