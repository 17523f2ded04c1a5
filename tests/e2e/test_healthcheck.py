"""``normfold healthcheck`` against a real server: what it prints, and its exit codes."""

from __future__ import annotations

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
        (("--model", "nope"), 1, "model nope is not ready; for the reason: normfold models --address"),
        (("--tls",), 1, "answers without TLS; leave out tls=… and the options --tls, --tls-…"),
        (("--version", "1"), 2, "--version needs --model"),
        (("--model", "m", "--version", "x"), 2, "version"),
    ],
)
def test_the_exit_code_says_whether_it_is_ready(address, arguments, code, said):
    done = CliRunner().invoke(healthcheck, ["--address", address, *arguments])
    assert (done.exit_code, said in done.output) == (code, True), done.output


def test_a_server_that_does_not_answer_is_not_ready():
    done = CliRunner().invoke(healthcheck, ["--address", "127.0.0.1:1", "--timeout", "5"])
    assert done.exit_code == 1
    assert "127.0.0.1:1" in done.output
