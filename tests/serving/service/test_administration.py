"""Loading and unloading, shared memory, traces and logs, asked over the wire."""

from __future__ import annotations

import json
import logging
import shutil
from multiprocessing import shared_memory

import grpc
import numpy as np
import pytest

from normfold.protos import grpc_service as pb

S = grpc.StatusCode
X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture
def own(serve, repository, tmp_path):
    """A server over a copy of the repository, for tests that change it."""
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    with serve(copy, strict_readiness=False) as one:
        one.folder = copy
        yield one


def refused(server, method, request) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        server.call(method, request)
    return caught.value.code(), caught.value.details()


def load(server, name, **parameters):
    request = pb.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        kind = "bytes_param" if isinstance(value, bytes) else "string_param"
        setattr(request.parameters[key.replace("__", ":").replace("_slash_", "/").replace("_dot_", ".")], kind, value)
    server.call("RepositoryModelLoad", request)


def unload(server, name):
    server.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=name))


def index(server, **fields) -> dict:
    models = server.call("RepositoryIndex", pb.RepositoryIndexRequest(**fields)).models
    return {(m.name, m.version): (m.state, m.reason) for m in models}


def test_the_index_names_every_model_with_state_and_reason(server):
    found = index(server)
    assert found["m", "1"] == found["m", "2"] == ("READY", "")
    state, reason = found["bad", "1"]
    assert state == "UNAVAILABLE"
    assert "not an ONNX model" in reason
    assert ("bad", "1") not in index(server, ready=True)


def test_an_unloaded_model_is_known_but_not_available(own, ask):
    unload(own, "nb")
    assert index(own)["nb", "1"] == ("UNAVAILABLE", "unloaded")
    assert refused(own, "ModelInfer", ask("nb")) == (
        S.NOT_FOUND,
        "Request for unknown model: 'nb' has no available versions (version 1: unloaded)",
    )
    status, words = refused(own, "ModelInfer", ask("nb", version="1"))
    assert status is S.UNAVAILABLE
    assert "Request for unknown model: 'nb' version 1 is not at ready state" in words
    assert not own.call("ModelReady", pb.ModelReadyRequest(name="nb")).ready
    load(own, "nb")
    np.testing.assert_array_equal(np.frombuffer(own.infer(ask("nb")).raw_output_contents[0], "<f4"), 2 * X[0])


def test_unloading_what_is_not_there_is_no_error(own):
    unload(own, "nope")


def test_kserves_load_carries_the_name_in_the_first_field(own):
    unload(own, "nb")
    own.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(repository_name="nb"))
    assert index(own)["nb", "1"][0] == "READY"
    own.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(repository_name="nb"))
    assert index(own)["nb", "1"][0] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r")),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(repository_name="r", model_name="m")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(repository_name="r", model_name="m")),
    ],
)
def test_a_repository_name_is_unimplemented(server, method, request_):
    assert refused(server, method, request_) == (S.UNIMPLEMENTED, "'repository_name' specification is not supported")


def test_loading_what_is_not_there_fails(server):
    status, words = refused(server, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nope"))
    assert status is S.INTERNAL
    assert words.startswith("failed to load 'nope', failed to poll from model repository")


def test_loading_a_broken_model_tells_why(own):
    status, words = refused(own, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="bad"))
    assert status is S.INVALID_ARGUMENT
    assert words.startswith("load failed for model 'bad': version 1 is at UNAVAILABLE state: ")


def test_a_reload_that_fails_leaves_the_old_version_serving(own, ask):
    (own.folder / "nb" / "1" / "model.onnx").write_bytes(b"broken")
    assert refused(own, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nb"))[0] is S.INVALID_ARGUMENT
    assert own.infer(ask("nb")).model_version == "1"
    (own.folder / "nb" / "config.pbtxt").write_text("max_batch_size: [", encoding="utf-8")
    status, words = refused(own, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nb"))
    assert status is S.INVALID_ARGUMENT
    assert words.startswith("failed to load 'nb': config.pbtxt, line 1:")
    assert own.infer(ask("nb")).model_version == "1"


def test_a_reload_brings_a_new_version_and_retires_the_old(own, ask, models):
    models.write(own.folder / "nb", models.scale(5.0), 2)
    load(own, "nb")
    assert own.infer(ask("nb")).model_version == "2"
    assert index(own)["nb", "1"] == ("UNAVAILABLE", "unloaded")
    assert index(own)["nb", "2"] == ("READY", "")


def test_a_load_may_override_the_configuration(own, ask):
    load(own, "nb", config='{"max_batch_size": "16", "version_policy": {"all": {}}}')
    config = own.call("ModelConfig", pb.ModelConfigRequest(name="nb")).config
    assert config.max_batch_size == 16
    assert list(config.input[0].dims) == [4]
    request = pb.RepositoryModelLoadRequest(model_name="nb")
    request.parameters["config"].string_param = '{"max_batch_sizes": 1}'
    status, words = refused(own, "RepositoryModelLoad", request)
    assert status is S.INTERNAL
    assert "failed to load 'nb'" in words
    assert "max_batch_sizes" in words


def test_a_load_may_bring_its_files(own, ask, models):
    request = pb.RepositoryModelLoadRequest(model_name="sent")
    request.parameters["file:3/model.onnx"].bytes_param = models.scale(7.0)
    status, words = refused(own, "RepositoryModelLoad", request)
    assert status is S.INTERNAL
    assert "need the parameter 'config'" in words
    request.parameters["config"].string_param = "{}"
    own.call("RepositoryModelLoad", request)
    response = own.infer(ask("sent"))
    assert response.model_version == "3"
    np.testing.assert_array_equal(np.frombuffer(response.raw_output_contents[0], "<f4"), 7 * X[0])


@pytest.mark.parametrize("path", ["A" * 256, "../x", "/etc/passwd", "1//model.onnx", "", "a\0b"])
def test_a_file_of_a_load_lies_inside_the_models_folder(server, path):
    request = pb.RepositoryModelLoadRequest(model_name="nb")
    request.parameters["config"].string_param = "{}"
    request.parameters[f"file:{path}"].bytes_param = b"a"
    status, words = refused(server, "RepositoryModelLoad", request)
    assert status is S.INTERNAL
    assert "failed to load 'nb', failed to poll from model repository" in words


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_an_unknown_parameter_of_a_load_or_unload_is_refused(server, method):
    request = getattr(pb, f"{method}Request")(model_name="m")
    request.parameters["nope"].bool_param = True
    assert refused(server, method, request)[0] is S.INVALID_ARGUMENT


def test_without_model_control_nothing_is_loaded_or_unloaded(serve, repository):
    with serve(repository, model_control=False, load_models=("m",)) as one:
        for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
            status, words = refused(one, method, getattr(pb, f"{method}Request")(model_name="m"))
            assert status is S.UNAVAILABLE
            assert "explicit model load / unload is not allowed" in words
        assert index(one)["m", "2"][0] == "READY"
        assert index(one)["nb", ""] == ("", "")


@pytest.fixture
def region():
    """A shared memory object of 256 bytes with X at offset 64."""
    memory = shared_memory.SharedMemory(create=True, size=256)
    memory.buf[64:80] = X.tobytes()
    yield memory
    memory.close()
    memory.unlink()


def register(server, memory, name="r", offset=0, size=256):
    server.call(
        "SystemSharedMemoryRegister",
        pb.SystemSharedMemoryRegisterRequest(name=name, key=f"/{memory.name}", offset=offset, byte_size=size),
    )


def in_region(ask, name="r", offset=0, size=16, output=None, **model):
    request = ask(**model)
    request.raw_input_contents[:] = []
    parameters = request.inputs[0].parameters
    parameters["shared_memory_region"].string_param = name
    parameters["shared_memory_offset"].int64_param = offset
    parameters["shared_memory_byte_size"].int64_param = size
    if output is not None:
        parameters = request.outputs.add(name="y").parameters
        parameters["shared_memory_region"].string_param = name
        parameters["shared_memory_offset"].int64_param = output[0]
        parameters["shared_memory_byte_size"].int64_param = output[1]
    return request


def test_inputs_and_outputs_go_through_shared_memory(own, ask, region):
    register(own, region, offset=64, size=128)
    status = own.call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest())
    assert [(r.name, r.offset, r.byte_size) for r in status.regions.values()] == [("r", 64, 128)]
    response = own.infer(in_region(ask, output=(32, 64)))
    assert list(response.raw_output_contents) == [b""]
    assert list(response.outputs[0].shape) == [1, 4]
    np.testing.assert_array_equal(np.frombuffer(region.buf[96:112], "<f4"), 3 * X[0])
    own.call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="r"))
    assert not own.call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()).regions
    assert refused(own, "ModelInfer", in_region(ask))[0] is S.NOT_FOUND


def test_a_raw_input_beside_one_in_shared_memory_is_the_first_raw_entry(own, ask, region):
    register(own, region)
    request = in_region(ask, offset=64, model="two", a=X, b=X)
    request.raw_input_contents.append((10 * X).tobytes())
    np.testing.assert_array_equal(np.frombuffer(own.infer(request).raw_output_contents[0], "<f4"), 11 * X[0])


@pytest.mark.parametrize(
    ("offset", "size"),
    [(-1, 16), (256, 1), (250, 16), (0, 257), (0, -1), (1, (1 << 63) - 1), ((1 << 63) - 1, 16), (-(1 << 63), 16)],
)
@pytest.mark.parametrize("side", ["input", "output"])
def test_no_offset_or_size_reaches_outside_a_region(own, ask, region, offset, size, side):
    register(own, region)
    where = {"offset": offset, "size": size} if side == "input" else {"offset": 64, "output": (offset, size)}
    request = in_region(ask, **where)
    status, words = refused(own, "ModelInfer", request)
    assert status is S.INVALID_ARGUMENT
    assert "for shared memory region: 'r'" in words


def test_an_output_that_needs_more_than_its_region_is_refused(own, ask, region):
    register(own, region)
    status, words = refused(own, "ModelInfer", in_region(ask, offset=64, output=(0, 8)))
    assert status is S.INVALID_ARGUMENT
    assert "(8 bytes) should be at least 16 bytes" in words


def test_a_region_that_shrinks_is_an_error_and_not_a_crash(own, ask, region):
    register(own, region)
    with open(f"/dev/shm/{region.name}", "r+b") as file:  # noqa: PTH123
        file.truncate(32)
    assert refused(own, "ModelInfer", in_region(ask, offset=64))[0] is S.INVALID_ARGUMENT
    assert refused(own, "ModelInfer", in_region(ask, offset=0, output=(64, 64)))[0] is S.INVALID_ARGUMENT
    assert own.infer(ask()).model_version == "2"


def test_what_cannot_be_registered_is_refused(own, region, tmp_path):
    make = pb.SystemSharedMemoryRegisterRequest
    method = "SystemSharedMemoryRegister"
    register(own, region)
    assert refused(own, method, make(name="r", key=f"/{region.name}", byte_size=1)) == (
        S.ALREADY_EXISTS,
        "shared memory region 'r' already in manager",
    )
    for key in ("/nokey", "", "/", "/../etc/passwd", "a/b", "/.."):
        assert refused(own, method, make(name="q", key=key, byte_size=1)) == (
            S.INTERNAL,
            f"Unable to open shared memory region: '{key}'",
        )
    for offset, size in ((0, 257), (256, 1), ((1 << 64) - 1, 2), (0, (1 << 64) - 1), (0, 0)):
        request = make(name="q", key=f"/{region.name}", offset=offset, byte_size=size)
        assert refused(own, method, request)[0] is S.INVALID_ARGUMENT
    assert refused(own, method, make(key=f"/{region.name}", byte_size=1))[0] is S.INVALID_ARGUMENT


def test_status_of_an_unknown_region_is_not_found_and_unregistering_it_no_error(server):
    assert refused(server, "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="q")) == (
        S.NOT_FOUND,
        "Unable to find system shared memory region: 'q'",
    )
    server.call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="q"))


def test_shared_memory_can_be_off(serve, repository, region):
    with serve(repository, shared_memory=False, load_models=("m",)) as one:
        request = pb.SystemSharedMemoryRegisterRequest(name="r", key=f"/{region.name}", byte_size=1)
        assert refused(one, "SystemSharedMemoryRegister", request)[0] is S.UNIMPLEMENTED


def test_there_is_no_cuda_shared_memory_and_it_is_said(server):
    assert not server.call("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()).regions
    server.call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest())
    request = pb.CudaSharedMemoryRegisterRequest(name="g", raw_handle=bytes(64), byte_size=1)
    status, words = refused(server, "CudaSharedMemoryRegister", request)
    assert status is S.INVALID_ARGUMENT
    assert "no CUDA shared memory here" in words
    assert refused(server, "CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name="g"))[0] is S.NOT_FOUND


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
def test_a_wrong_log_setting_is_refused(server, key, kind, value, words):
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
        assert _trace_setting(one, "nb", trace_level=["OFF"])["trace_level"] == ["OFF"]
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
        ({"trace_file": ["/tmp/x"]}, "trace_file can not be updated"),
    ],
)
def test_a_wrong_trace_setting_is_refused(server, settings, words):
    request = pb.TraceSettingRequest()
    for key, values in settings.items():
        request.settings[key].value.extend(values)
    status, details = refused(server, "TraceSetting", request)
    assert (status, words in details) == (S.INVALID_ARGUMENT, True)


def test_trace_settings_of_an_unknown_model_are_refused(server):
    assert refused(server, "TraceSetting", pb.TraceSettingRequest(model_name="nope"))[0] is S.INVALID_ARGUMENT
