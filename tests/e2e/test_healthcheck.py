"""``normfold healthcheck`` against a real server: what it prints, and its exit codes."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from normfold.cli.healthcheck import healthcheck


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 0, "the server is ready"),
        (("--model", "m"), 0, "model m is ready"),
        (("--model", "m", "--version", "2"), 0, "model m version 2 is ready"),
        (("--model", "m", "--version", "7"), 1, "model m version 7 is not ready"),
        (("--model", "nope"), 1, "the server has no model 'nope'; it has m"),
        (("--tls",), 1, "answers without TLS; leave out tls=… and the options --tls, --tls-…"),
        (("--version", "1"), 2, "--version needs --model"),
        (("--model", "m", "--version", "x"), 2, "version"),
    ],
)
def test_the_exit_code_says_whether_it_is_ready(address, arguments, code, said):
    done = CliRunner().invoke(healthcheck, ["--address", address, *arguments])
    assert (done.exit_code, said in done.output) == (code, True), done.output


@pytest.mark.parametrize("form", ["dns:///{}", "ipv4:{}"])
def test_every_form_of_an_address_of_grpc_is_asked_over_grpc(address, form):
    done = CliRunner().invoke(healthcheck, ["--address", form.format(address)])
    assert (done.exit_code, "the server is ready" in done.output) == (0, True), done.output


def test_a_server_that_does_not_answer_is_not_ready():
    done = CliRunner().invoke(healthcheck, ["--address", "127.0.0.1:1", "--timeout", "5"])
    assert done.exit_code == 1
    assert "127.0.0.1:1" in done.output


@pytest.fixture(scope="module")
def http(repository, start, tmp_path_factory):
    """The HTTP port of a server whose gRPC port wants a token."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"somebody infer,read * sha256:{'0' * 64}\n")
    with start(repository, "--metrics-listen", "127.0.0.1:0", "--tokens", str(tokens)) as server:
        yield re.search(r"http://[\d.:]+", "\n".join(server.lines))[0]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 0, "the server is ready"),
        (("--model", "m", "--version", "2"), 0, "model m version 2 is ready"),
        (("--model", "m", "--version", "7"), 1, "model m version 7 is not ready; for the reason: normfold models"),
        (("--model", "no/pe"), 1, "the server has no model 'no/pe'"),
        (("--model", "m", "--version", "x"), 1, "answered with 400: "),
        (("--tls",), 2, "the metrics port has no TLS; leave out --tls and --tls-…"),
    ],
)
def test_the_http_port_says_the_same_without_a_token(http, monkeypatch, arguments, code, said):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    done = CliRunner().invoke(healthcheck, ["--address", http, *arguments])
    assert (done.exit_code, said in done.output) == (code, True), done.output


@pytest.mark.parametrize(
    ("url", "code", "said"),
    [
        ("http://127.0.0.1:1", 1, "http://127.0.0.1:1 does not answer: Connection refused; is the server started?"),
        ("http://127.0.0.1", 2, "expected http://host:port of the metrics port, such as http://127.0.0.1:8002"),
        ("https://127.0.0.1:1", 2, "expected http://host:port"),
        ("http://127.0.0.1:x", 2, "expected http://host:port"),
        ("http://127.0.0.1:1/readyz", 2, "expected http://host:port"),
    ],
)
def test_a_wrong_http_address_is_told_a_right_one(url, code, said):
    done = CliRunner().invoke(healthcheck, ["--address", url])
    assert (done.exit_code, said in " ".join(done.output.split())) == (code, True), done.output


def test_the_port_of_grpc_is_no_http_port(address):
    done = CliRunner().invoke(healthcheck, ["--address", f"http://{address}"])
    assert done.exit_code == 1
    assert "does not answer" in done.output
