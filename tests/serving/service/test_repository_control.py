"""Loading and unloading models, asked over the wire."""

from __future__ import annotations

import asyncio
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from normfold import Client, ClientError
from normfold.protos import grpc_service as pb
from normfold.serving.catalog.trust import UNCHECKED

S = grpc.StatusCode
X = np.array([[1, 2, 3, 4]], np.float32)


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
    assert found["m", "1"] == found["m", "2"] == ("READY", UNCHECKED)
    state, reason = found["bad", "1"]
    assert state == "UNAVAILABLE"
    assert "not an ONNX model" in reason
    assert ("bad", "1") not in index(server, ready=True)


def test_an_unloaded_model_is_known_but_not_available(own, ask, refused):
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


def test_a_load_is_refused_while_others_hold_too_many_bytes(repository, serve, frontend, refused, monkeypatch):
    begun, goes_on = threading.Event(), asyncio.Event()

    async def held(*_):
        begun.set()
        await goes_on.wait()

    sent = {"config": "{}", "file__1_slash_model_dot_onnx": bytes(700 << 10)}
    with (
        serve(repository, frontend=frontend, max_queue_bytes=1 << 20, strict_readiness=False) as one,
        ThreadPoolExecutor(1) as thread,
    ):
        monkeypatch.setattr(one.server.catalog, "load", held)
        first = thread.submit(load, one, "sent", **sent)
        assert begun.wait(20)
        request = pb.RepositoryModelLoadRequest(model_name="another")
        request.parameters["file:1/model.onnx"].bytes_param = sent["file__1_slash_model_dot_onnx"]
        assert refused(one, "RepositoryModelLoad", request) == (
            S.RESOURCE_EXHAUSTED,
            "overloaded: requests of too many bytes are under way in this server, try again later",
        )
        one.loop.call_soon_threadsafe(goes_on.set)
        first.result(20)
        load(one, "another", **sent)


def test_loads_with_files_leave_room_for_inferences_and_small_loads_and_the_reverse(
    repository, serve, frontend, ask, monkeypatch
):
    """A load may take minutes: models that serve went on before loads counted, and busy servers took large models."""
    begun, goes_on = threading.Event(), asyncio.Event()

    async def held(name, *_):
        if name == "sent":
            begun.set()
            await goes_on.wait()

    with (
        serve(repository, frontend=frontend, max_queue_bytes=1 << 20, strict_readiness=False) as one,
        ThreadPoolExecutor(1) as thread,
    ):
        monkeypatch.setattr(one.server.catalog, "load", held)
        for connection in range(2):
            one.server._admission.enter(None, connection, 1 << 20)
        first = thread.submit(load, one, "sent", config="{}", file__1_slash_model_dot_onnx=bytes(2 << 20))
        assert begun.wait(20)
        load(one, "small")
        for connection in range(2):
            one.server._admission.leave(None, connection, 1 << 20)
        np.testing.assert_array_equal(np.frombuffer(one.infer(ask("nb")).raw_output_contents[0], "<f4"), 2 * X[0])
        one.loop.call_soon_threadsafe(goes_on.set)
        first.result(20)


def test_unloading_what_is_not_there_is_no_error(own):
    unload(own, "nope")
    assert not own.server.catalog._locks  # nothing is kept of a name that any client may send


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
def test_a_repository_name_is_unimplemented(server, method, request_, refused):
    assert refused(server, method, request_) == (S.UNIMPLEMENTED, "'repository_name' specification is not supported")


def test_loading_what_is_not_there_fails(server, refused):
    status, words = refused(server, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nope"))
    assert status is S.INTERNAL
    assert words.startswith("failed to load 'nope', failed to poll from model repository")
    assert "there is no such folder; there are: '" in words


def test_loading_a_broken_model_tells_why(own, refused):
    status, words = refused(own, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="bad"))
    assert status is S.INVALID_ARGUMENT
    assert words.startswith("load failed for model 'bad': version 1 is at UNAVAILABLE state: ")
    assert "goes on" not in words


def test_a_reload_that_fails_leaves_the_old_version_serving(own, ask, refused):
    (own.folder / "nb" / "1" / "model.onnx").write_bytes(b"broken")
    status, words = refused(own, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nb"))
    assert status is S.INVALID_ARGUMENT
    assert words.endswith("; version 1 goes on answering")
    assert own.infer(ask("nb")).model_version == "1"
    (own.folder / "nb" / "config.pbtxt").write_text("max_batch_size: [", encoding="utf-8")
    status, words = refused(own, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nb"))
    assert status is S.INVALID_ARGUMENT
    assert words.startswith("failed to load 'nb': config.pbtxt, line 1:")
    assert words.endswith("; version 1 goes on answering")
    assert own.infer(ask("nb")).model_version == "1"
    shutil.rmtree(own.folder / "nb")
    status, words = refused(own, "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nb"))
    assert (status, words.endswith("; version 1 goes on answering")) == (S.INTERNAL, True)


def test_a_reload_brings_a_new_version_and_retires_the_old(own, ask, models):
    models.write(own.folder / "nb", models.scale(5.0), 2)
    load(own, "nb")
    assert own.infer(ask("nb")).model_version == "2"
    assert index(own)["nb", "1"] == ("UNAVAILABLE", "unloaded")
    assert index(own)["nb", "2"] == ("READY", UNCHECKED)


def test_a_load_may_override_the_configuration(own, ask, refused):
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


def test_a_load_may_bring_its_files(own, ask, models, refused):
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
def test_a_file_of_a_load_lies_inside_the_models_folder(server, path, refused):
    request = pb.RepositoryModelLoadRequest(model_name="nb")
    request.parameters["config"].string_param = "{}"
    request.parameters[f"file:{path}"].bytes_param = b"a"
    status, words = refused(server, "RepositoryModelLoad", request)
    assert status is S.INTERNAL
    assert "failed to load 'nb', failed to poll from model repository" in words


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_an_unknown_parameter_of_a_load_or_unload_is_refused(server, method, refused):
    request = getattr(pb, f"{method}Request")(model_name="m")
    request.parameters["nope"].bool_param = True
    assert refused(server, method, request)[0] is S.INVALID_ARGUMENT


def test_without_model_control_nothing_is_loaded_or_unloaded(serve, repository, refused):
    with serve(repository, model_control="none", load_models=("m",)) as one:
        for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
            status, words = refused(one, method, getattr(pb, f"{method}Request")(model_name="m"))
            assert status is S.UNAVAILABLE
            assert "not allowed: start the server with --model-control explicit, or send it SIGHUP after" in words
        assert index(one)["m", "2"][0] == "READY"
        assert index(one)["nb", ""] == ("", "")


def failed(server) -> int:
    """How many loads have failed."""
    rows = server.server.snapshots.failed_calls()
    return sum(row.count for row in rows if row.method.endswith("RepositoryModelLoad"))


def test_clients_do_not_send_again_what_the_server_does_not_offer(serve, repository, ask):
    """They sent it three times: UNAVAILABLE, the status that Triton gives it, means that another try may help."""
    with serve(repository, model_control="none", load_models=("m",)) as one:
        for method, request in (
            ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m")),
            ("LogSettings", pb.LogSettingsRequest(settings={"log_info": {"bool_param": False}})),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                one.call(method, request)
            assert caught.value.code() is S.UNAVAILABLE
            assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
        before = failed(one)
        with Client(one.server.address) as client, pytest.raises(ClientError, match="not allowed"):
            client.load("m")
        assert failed(one) == before + 1
