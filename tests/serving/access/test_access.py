"""A server with tokens, from outside: every call of every method with every kind of token, on both frontends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from normfold.protos import grpc_service as pb
from normfold.protos import health
from normfold.serving.access.access import PARSED_BYTES, Access, credential
from normfold.serving.access.scopes import RIGHTS, Scope
from normfold.serving.access.tokens import Holder, digest, line
from normfold.serving.errors import PermissionDenied, Unauthenticated
from normfold.serving.frontends import FRONTENDS
from normfold.serving.process import file_watch
from normfold.serving.rpc.methods import Method
from normfold.whole_file import write_whole

INFERENCE = "/inference.GRPCInferenceService/"
SCOPES = {
    "reader": {Scope.READ},
    "asker": {Scope.INFER},
    "operator": {Scope.ADMIN},
    "all": set(Scope),
    "only-m": set(Scope),
    "only-tow": set(Scope),
}
LIMITED = {"only-m": ["m"], "only-tow": ["tow"]}
REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}


def bearer(name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token(name)}")]


def token(name: str) -> str:
    return f"the token of {name}"


def lines(*names: str) -> str:
    return "".join(line(name, SCOPES[name], LIMITED.get(name, []), token(name)) + "\n" for name in names)


@pytest.fixture(scope="module", params=FRONTENDS)
def guarded(repository: Path, serve: Any, request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with a token for each name in SCOPES."""
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(lines(*SCOPES))
    with serve(repository, strict_readiness=False, frontend=request.param, tokens=path) as one:
        yield one


def status(channel: grpc.Channel, path: str, data: bytes, metadata: Any) -> tuple[grpc.StatusCode, str]:
    """The status of a call with one message, or of the beginning of a stream."""
    streams = path.endswith(("Watch", "ReflectionInfo", "ModelStreamInfer"))
    call = channel.stream_stream(path)(iter([data]), timeout=20, metadata=metadata) if streams else None
    try:
        if call is None:
            channel.unary_unary(path)(data, timeout=20, metadata=metadata)
        else:
            next(call, None)
    except grpc.RpcError as error:
        return error.code(), error.details()
    finally:
        if call is not None:
            call.cancel()
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("path", RIGHTS)
def test_every_method_is_closed_without_a_token_and_open_to_its_scope_alone(guarded, path):
    for metadata in ([], [("authorization", "Bearer guess")], [("authorization", "Basic " + token("all"))]):
        assert status(guarded.channel, path, b"", metadata)[0] is grpc.StatusCode.UNAUTHENTICATED, metadata
    for name in ("reader", "asker", "operator", "all"):
        code, details = status(guarded.channel, path, b"", bearer(name))
        if RIGHTS[path].scope in SCOPES[name]:
            assert code not in REFUSED, (name, details)
        else:
            assert code is grpc.StatusCode.PERMISSION_DENIED, name
            assert f"this call needs {RIGHTS[path].scope}" in details


#: A request that names the model, and whether a token for ``m`` alone may send it.
BY_MODEL = {
    "ModelReady": lambda name: pb.ModelReadyRequest(name=name),
    "ModelMetadata": lambda name: pb.ModelMetadataRequest(name=name),
    "ModelConfig": lambda name: pb.ModelConfigRequest(name=name),
    "ModelStatistics": lambda name: pb.ModelStatisticsRequest(name=name),
    "ModelInfer": lambda name: pb.ModelInferRequest(model_name=name),
    "ModelStreamInfer": lambda name: pb.ModelInferRequest(model_name=name),
    "RepositoryModelLoad": lambda name: pb.RepositoryModelLoadRequest(model_name=name),
    "RepositoryModelUnload": lambda name: pb.RepositoryModelUnloadRequest(repository_name=name),
    "TraceSetting": lambda name: pb.TraceSettingRequest(model_name=name),
    "Check": lambda name: health.HealthCheckRequest(service=name),
    "Watch": lambda name: health.HealthCheckRequest(service=name),
}


def test_the_table_of_models_has_every_right_that_names_one():
    assert {path.rpartition("/")[2] for path, right in RIGHTS.items() if right.model} == set(BY_MODEL)


def test_a_token_for_a_model_that_is_not_there_learns_no_name_of_another(guarded):
    """The server has the model two."""
    paths = [path for path, right in RIGHTS.items() if right.model]
    asked = [(path, BY_MODEL[path.rpartition("/")[2]]("tow").SerializeToString()) for path in paths]
    found = [status(guarded.channel, path, data, bearer("only-tow")) for path, data in asked]
    assert not {code for code, _ in found} & REFUSED
    told = [details for _, details in found]
    assert not [details for details in told if "did you mean" in details or "there are" in details]
    assert "failed to load 'tow', failed to poll from model repository: there is no such folder" in told
    assert "Request for unknown model: 'tow' is not found" in told


@pytest.mark.parametrize("path", [path for path, right in RIGHTS.items() if right.model])
def test_a_token_for_one_model_is_for_that_model_alone(guarded, path):
    make = BY_MODEL[path.rpartition("/")[2]]
    for name, allowed in (("m", True), ("nb", False), ("", path.startswith("/grpc.health"))):
        if name == "m" and "RepositoryModel" in path:
            continue  # other tests need the model; below a request is refused for another reason
        code, details = status(guarded.channel, path, make(name).SerializeToString(), bearer("only-m"))
        assert (code not in REFUSED) is allowed, (name, details)
        if not allowed:
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert details.startswith("token 'only-m' does not allow")


def test_a_token_for_one_model_may_load_it_and_no_other(guarded):
    load = pb.RepositoryModelLoadRequest(model_name="m", parameters={"nonsense": pb.ModelRepositoryParameter()})
    code, details = status(
        guarded.channel, f"{INFERENCE}RepositoryModelLoad", load.SerializeToString(), bearer("only-m")
    )
    assert (code, "unrecognized load parameter" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    load.model_name, load.repository_name = "nb", "m"
    code, _ = status(guarded.channel, f"{INFERENCE}RepositoryModelLoad", load.SerializeToString(), bearer("only-m"))
    assert code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_the_last_token_can_be_taken_back(repository, serve, frontend, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.02)
    path = tmp_path / "tokens"
    path.write_text(lines("all"))
    with serve(repository, strict_readiness=False, frontend=frontend, tokens=path) as one, within(30) as still:
        assert status(one.channel, f"{INFERENCE}ServerLive", b"", bearer("all"))[0] is grpc.StatusCode.OK
        write_whole(path, f"#{lines('all')}".encode())
        while status(one.channel, f"{INFERENCE}ServerLive", b"", bearer("all"))[0] not in REFUSED and still():
            time.sleep(0.01)
        path.write_text(lines("reader"))
        while status(one.channel, f"{INFERENCE}ServerLive", b"", bearer("reader"))[0] in REFUSED and still():
            time.sleep(0.01)
    assert "no token is left: nobody can come in" in caplog.text


@pytest.mark.parametrize(
    "path", [path for path, right in RIGHTS.items() if right.model is not None and not right.model]
)
def test_a_token_for_one_model_does_not_reach_what_concerns_all(guarded, path):
    code, details = status(guarded.channel, path, b"", bearer("only-m"))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert details == "token 'only-m' is for some models only; this call concerns the whole server"


def test_planned_requests_are_admitted_by_their_model_too(guarded, ask):
    for _ in range(3):  # from the second on they are planned
        answer = guarded.infer(ask("m", x=[[1, 2, 3, 4]]), metadata=bearer("only-m"))
        assert answer.model_name == "m"
        guarded.infer(ask("nb", x=[[1, 2, 3, 4]]), metadata=bearer("all"))
        with pytest.raises(grpc.RpcError) as caught:
            guarded.infer(ask("nb", x=[[1, 2, 3, 4]]), metadata=bearer("only-m"))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_token_for_one_model_does_not_learn_that_another_is_full():
    """The door says it, before the request has come and its model was compared."""
    path = "/inference.GRPCInferenceService/ModelInfer"
    method = Method(path, pb.ModelInferRequest, wire_unary=lambda data: b"", door=lambda head, size: None)
    everything, one = Holder("a", frozenset(Scope), None), Holder("b", frozenset(Scope), frozenset("m"))
    admitted = Access({b"a": everything, b"b": one})
    assert admitted.admit(method, b"a").door is method.door
    assert admitted.admit(method, b"b").door is None


def test_a_second_name_behind_the_first_does_not_smuggle_a_model_in(guarded, ask):
    for size in (1, PARSED_BYTES):
        request = ask("m", x=[[1.0] * size]).SerializeToString()
        data = request + pb.ModelInferRequest(model_name="nb").SerializeToString()
        code, details = status(guarded.channel, f"{INFERENCE}ModelInfer", data, bearer("only-m"))
        assert (code, details) == (grpc.StatusCode.PERMISSION_DENIED, "token 'only-m' does not allow the model 'nb'")
        code, details = status(guarded.channel, f"{INFERENCE}ModelInfer", request + b"\x0a\x05m", bearer("only-m"))
        assert (code, "not a inference.ModelInferRequest message" in details) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            True,
        )
        code, details = status(guarded.channel, f"{INFERENCE}ModelInfer", request, bearer("only-m"))
        assert "expected" in details  # the model takes four numbers


def test_two_headers_with_tokens_are_refused(guarded):
    metadata = bearer("all") + bearer("all")
    code, details = status(guarded.channel, f"{INFERENCE}ServerLive", b"", metadata)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "more than once" in details


def test_a_call_is_refused_before_its_request_is_read(guarded):
    release = []

    def nothing() -> Iterator[bytes]:
        while not release:
            time.sleep(0.01)
        yield b""

    call = guarded.channel.stream_stream(f"{INFERENCE}ModelInfer")(nothing(), timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    release.append(True)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_the_log_names_the_holder_and_never_a_token(guarded, caplog):
    with caplog.at_level("INFO", "normfold"):
        status(guarded.channel, f"{INFERENCE}ServerLive", b"", [("authorization", "Bearer my guess")])
        status(guarded.channel, f"{INFERENCE}ModelInfer", b"", bearer("reader"))
    assert "ServerLive: UNAUTHENTICATED: the server does not know this token" in caplog.text
    assert "ModelInfer: PERMISSION_DENIED: token 'reader' has the scopes read" in caplog.text
    assert "my guess" not in caplog.text
    assert token("reader") not in caplog.text


def test_health_may_be_open_to_everybody(repository, serve, frontend, tmp_path):
    (tmp_path / "tokens").write_text(lines("all"))
    options = {"tokens": tmp_path / "tokens", "health_without_token": True, "strict_readiness": False}
    with serve(repository, frontend=frontend, **options) as one:
        for path, right in RIGHTS.items():
            assert (status(one.channel, path, b"", [])[0] is not grpc.StatusCode.UNAUTHENTICATED) is right.health, path


@contextlib.contextmanager
def within(seconds: float) -> Iterator[Any]:
    end = time.monotonic() + seconds
    yield lambda: time.monotonic() < end or pytest.fail("it did not happen")


def test_the_file_is_read_again_and_a_token_that_is_gone_ends_its_streams(
    repository, serve, frontend, tmp_path, monkeypatch, ask, caplog
):
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.02)
    path = tmp_path / "tokens"
    path.write_text(lines("all", "asker", "only-m"))
    with serve(repository, strict_readiness=False, frontend=frontend, tokens=path) as one, within(30) as still:
        more = []

        def requests() -> Iterator[bytes]:
            yield ask("m").SerializeToString()
            while not more:
                time.sleep(0.01)
            yield ask("m").SerializeToString()

        stream = one.channel.stream_stream(f"{INFERENCE}ModelStreamInfer")(
            requests(), timeout=60, metadata=bearer("asker")
        )
        watching = one.channel.unary_stream("/grpc.health.v1.Health/Watch")(
            health.HealthCheckRequest(service="m").SerializeToString(), timeout=60, metadata=bearer("only-m")
        )
        assert health.HealthCheckResponse.FromString(next(watching)).status == health.HealthCheckResponse.SERVING
        assert not pb.ModelStreamInferResponse.FromString(next(stream)).error_message
        write_whole(path, b"a broken line")
        while "what was read before stays in force" not in caplog.text and still():
            time.sleep(0.01)
        assert status(one.channel, f"{INFERENCE}ServerLive", b"", bearer("all"))[0] is grpc.StatusCode.OK
        write_whole(path, lines("all", "reader").encode())
        while status(one.channel, f"{INFERENCE}ServerLive", b"", bearer("reader"))[0] in REFUSED and still():
            time.sleep(0.01)
        assert status(one.channel, f"{INFERENCE}ModelInfer", b"", bearer("asker"))[0] is grpc.StatusCode.UNAUTHENTICATED
        more.append(True)
        one.channel.unary_unary(f"{INFERENCE}RepositoryModelUnload")(
            pb.RepositoryModelUnloadRequest(model_name="m").SerializeToString(), timeout=60, metadata=bearer("all")
        )
        for ended in (stream, watching):
            with pytest.raises(grpc.RpcError) as caught:
                next(ended)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_method_without_a_right_is_open_to_no_token():
    access = Access({digest("t"): Holder("all", frozenset(Scope), None)}, health_without_token=True)
    method = Method("/inference.GRPCInferenceService/New", pb.ServerLiveRequest)
    with pytest.raises(PermissionDenied, match=r"/inference\.GRPCInferenceService/New is open to no token"):
        access.admit(method, digest("t"))
    with pytest.raises(Unauthenticated):
        access.admit(method, digest("u"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], b""),
        ([b"Bearer t"], digest("t")),
        ([b"bEARER   t "], digest("t")),
        ([b"Bearert"], b"?"),
        ([b"t"], b"?"),
        ([b"Bearer t", b"Bearer t"], b"?"),
        ([b"Bearer "], digest("")),
    ],
)
def test_the_credential_is_the_digest_of_the_token(values, expected):
    assert credential(values) == expected


def test_reflection_can_be_off(repository, serve, frontend):
    path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    with serve(repository, strict_readiness=False, frontend=frontend, reflection=False) as one:
        assert status(one.channel, path, b"", [])[0] is grpc.StatusCode.UNIMPLEMENTED
