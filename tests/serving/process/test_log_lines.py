"""A name in a message is never a line of the log."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from onnx import TensorProto, helper

from normfold.protos import grpc_service as pb
from normfold.serving.process.log_lines import Lines
from normfold.serving.process.logs import LogSettings

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
