"""The settings of the log and of traces, read and changed over the wire."""

from __future__ import annotations

import json
import logging
import os
import threading

import grpc
import pytest

from normfold.plain_file import append_plain_text
from normfold.protos import grpc_service as pb
from normfold.serving.errors import StartError
from normfold.serving.infer import trace_file
from normfold.serving.server import Server
from normfold.serving.settings import ServerConfig

S = grpc.StatusCode


def _log_settings(server, **settings):
    request = pb.LogSettingsRequest()
    for key, (kind, value) in settings.items():
        setattr(request.settings[key], kind, value)
    answer = server.call("LogSettings", request).settings
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in answer.items()}


def test_log_settings_are_read_and_really_change_logging(own):
    assert _log_settings(own) == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    try:
        assert not _log_settings(own, log_info=("bool_param", False))["log_info"]
        assert not logging.getLogger("normfold.serving").isEnabledFor(logging.INFO)
        assert _log_settings(own, log_verbose_level=("uint32_param", 1))["log_verbose_level"] == 1
        assert logging.getLogger("normfold.serving").isEnabledFor(logging.DEBUG)
        assert _log_settings(own, log_format=("string_param", "ISO8601"))["log_format"] == "ISO8601"
    finally:
        _log_settings(own, log_info=("bool_param", True), log_verbose_level=("uint32_param", 0))


@pytest.mark.parametrize(
    ("key", "kind", "value", "words"),
    [
        ("nope", "bool_param", True, "log setting 'nope' is not known"),
        ("log_inf", "bool_param", True, "did you mean 'log_info'?"),
        ("log_info", "string_param", "yes", "must be given as bool_param"),
        ("log_format", "string_param", "xml", "must be one of default, ISO8601"),
    ],
)
def test_a_wrong_log_setting_is_refused(server, key, kind, value, words, refused):
    request = pb.LogSettingsRequest()
    setattr(request.settings[key], kind, value)
    status, details = refused(server, "LogSettings", request)
    assert (status, words in details) == (S.INVALID_ARGUMENT, True)


def _trace_setting(server, model="", **settings):
    request = pb.TraceSettingRequest(model_name=model)
    for key, values in settings.items():
        request.settings[key].value.extend(values)
    return {key: list(value.value) for key, value in server.call("TraceSetting", request).settings.items()}


def test_trace_settings_are_read_as_from_triton(server):
    assert _trace_setting(server) == {
        "trace_mode": ["triton"],
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_file": [""],
    }


def test_traces_are_written_by_rate_and_count(serve, repository, tmp_path, ask):
    file = tmp_path / "trace.jsonl"
    with serve(repository, trace_file=file, strict_readiness=False) as one:
        one.infer(ask())
        _trace_setting(one, trace_level=["TIMESTAMPS"], trace_rate=["2"], trace_count=["2"])
        for number in range(10):
            message = ask()
            message.id = str(number)
            one.infer(message)
        assert _trace_setting(one)["trace_count"] == ["0"]
        assert _trace_setting(one, "nb", trace_level=["OFF"] * 1000)["trace_level"] == ["OFF"]
        assert _trace_setting(one)["trace_level"] == ["TIMESTAMPS"]
        assert _trace_setting(one, "nb", trace_level=[])["trace_level"] == ["TIMESTAMPS"]
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["request_id"] for line in lines[::2]] == ["1", "3"]
    for head, times in zip(lines[::2], lines[1::2], strict=True):
        assert (head["model_name"], head["model_version"], head["id"]) == ("m", 2, times["id"])
        names = [stamp["name"] for stamp in times["timestamps"]]
        assert names == ["REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_END", "REQUEST_END"]
        stamps = [stamp["ns"] for stamp in times["timestamps"]]
        assert stamps == sorted(stamps)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nope": ["1"]}, "trace setting 'nope' is not known"),
        ({"trace_level": ["ALL"]}, "trace_level must be OFF or TIMESTAMPS"),
        ({"trace_rate": ["x"]}, "trace_rate must be one number"),
        ({"trace_count": ["1", "2"]}, "trace_count must be one number"),
        ({"trace_rate": ["9" * 5000]}, "trace_rate must be one number from -1 to 4294967295, got '999"),
        ({"trace_count": ["-" + "9" * 5000]}, "trace_count must be one number"),
        ({"trace_count": ["--1"]}, "trace_count must be one number"),
        ({"log_frequency": ["9" * 5000]}, "log_frequency must be one number"),
        ({"trace_file": ["/tmp/x"]}, "trace_file can not be updated"),
    ],
)
def test_a_wrong_trace_setting_is_refused(server, settings, words, refused):
    request = pb.TraceSettingRequest()
    for key, values in settings.items():
        request.settings[key].value.extend(values)
    status, details = refused(server, "TraceSetting", request)
    assert (status, words in details) == (S.INVALID_ARGUMENT, True)


def test_trace_settings_of_an_unknown_model_are_refused(server, refused):
    assert refused(server, "TraceSetting", pb.TraceSettingRequest(model_name="nope"))[0] is S.INVALID_ARGUMENT


def test_without_model_control_settings_are_only_read(serve, repository, refused, frontend):
    with serve(repository, model_control="none", load_models=("m",), frontend=frontend) as one:
        change = pb.LogSettingsRequest()
        change.settings["log_info"].bool_param = False
        trace = pb.TraceSettingRequest(model_name="m")
        trace.settings["trace_level"].value.append("TIMESTAMPS")
        clear = pb.TraceSettingRequest()
        clear.settings["trace_level"].SetInParent()
        for method, request in (("LogSettings", change), ("TraceSetting", trace), ("TraceSetting", clear)):
            status, details = refused(one, method, request)
            assert (status, "start the server with --model-control explicit" in details) == (S.UNAVAILABLE, True)
        assert _log_settings(one)["log_info"] is True
        assert _trace_setting(one, "m")["trace_level"] == ["OFF"]


def test_a_trace_file_that_cannot_be_written_ends_the_start(repository, tmp_path):
    config = ServerConfig(repository, listen="127.0.0.1:0", trace_file=tmp_path / "missing" / "trace")
    with pytest.raises(StartError, match=r"--trace-file .*missing/trace cannot be written: No such file or directory"):
        Server(config)


def test_a_trace_file_that_is_a_pipe_ends_the_start(repository, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StartError, match="pipe cannot be written: it is not a plain file"):
        Server(ServerConfig(repository, listen="127.0.0.1:0", trace_file=tmp_path / "pipe"))


def test_a_pipe_that_takes_the_place_of_the_trace_file_holds_up_no_request(serve, repository, tmp_path, ask, caplog):
    file = tmp_path / "trace"
    with serve(repository, trace_file=file, load_models=("m",)) as one:
        _trace_setting(one, trace_level=["TIMESTAMPS"], trace_rate=["1"])
        file.unlink()
        os.mkfifo(file)
        assert one.infer(ask()).model_name == "m"
    assert "trace cannot be written: it is not a plain file" in caplog.text


def test_a_disk_that_takes_no_traces_makes_no_request_wait(serve, repository, tmp_path, ask, caplog, monkeypatch):
    begun, takes = threading.Event(), threading.Event()

    def stuck(path, lines):
        begun.set()
        assert takes.wait(30)
        append_plain_text(path, lines)

    with serve(repository, trace_file=tmp_path / "trace", load_models=("m",)) as one:
        monkeypatch.setattr(trace_file, "append_plain_text", stuck)
        monkeypatch.setattr(trace_file, "MOST_WAITING", 3)
        _trace_setting(one, trace_level=["TIMESTAMPS"], trace_rate=["1"])
        one.infer(ask())
        assert begun.wait(30)
        for _ in range(5):
            assert one.infer(ask()).model_name == "m"
        takes.set()
    lines = (tmp_path / "trace").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert "2 traces are missing in" in caplog.text


def test_without_a_thread_for_traces_requests_are_answered_all_the_same(serve, repository, tmp_path, ask, monkeypatch):
    with serve(repository, trace_file=tmp_path / "trace", load_models=("m",)) as one:
        _trace_setting(one, trace_level=["TIMESTAMPS"], trace_rate=["1"])
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", _no_thread)
            assert one.infer(ask()).model_name == "m"
        assert one.infer(ask()).model_name == "m"
    assert (tmp_path / "trace").read_text(encoding="utf-8").count('"request_id"') == 1


def _no_thread(self):
    raise RuntimeError("can't start new thread")


def test_a_trace_that_cannot_be_written_later_fails_no_request(serve, repository, tmp_path, ask, caplog):
    file = tmp_path / "folder" / "trace"
    file.parent.mkdir()
    with serve(repository, trace_file=file, load_models=("m",)) as one:
        _trace_setting(one, trace_level=["TIMESTAMPS"], trace_rate=["1"])
        file.unlink()
        file.parent.rmdir()
        assert one.infer(ask()).model_name == "m"
    assert "cannot be written: No such file or directory" in caplog.text
