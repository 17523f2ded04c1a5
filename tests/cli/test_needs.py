"""An option that would be ignored beside the others is refused, wherever it comes from."""

from __future__ import annotations

from importlib import import_module

import pytest
from click.testing import CliRunner

from normfold.cli.main import COMMANDS, _command, main

SERVE = ("serve", "-r", "nowhere")
FILES = ("verify", "a.onnx", "b.onnx")
ALONE = [
    ((*SERVE, "--poll-seconds", "5"), "--poll-seconds", "without --model-control poll"),
    ((*SERVE, "--frontend", "grpcio", "--max-connections", "9"), "--max-connections", "with --frontend grpcio"),
    ((*SERVE, "--frontend", "grpcio", "--stall-seconds", "9"), "--stall-seconds", "with --frontend grpcio"),
    ((*SERVE, "--max-connection-age-grace", "9"), "--max-connection-age-grace", "without --max-connection-age"),
    ((*SERVE, "--keepalive-seconds", "0", "--keepalive-timeout", "9"), "--keepalive-timeout", "no client is asked"),
    ((*SERVE, "--load-seconds", "0", "--load-mib", "9"), "--load-mib", "no load is tried"),
    ((*SERVE, "--workers", "1", "--worker-seconds", "9"), "--worker-seconds", "with --workers 1"),
    (("models", "-r", ".", "--address", "h:1"), "--address", "no server is asked"),
    (("models", "-r", ".", "--tls-ca", "ca.pem"), "--tls-ca", "no server is asked"),
    (("healthcheck", "-a", "http://h:1", "--token-file", "t"), "--token-file", "needs no token"),
    (("sign", ".", "--name", "m"), "--name", "without --key"),
    ((*FILES, "--arg", "a=1"), "--arg", "neither side is code"),
    ((*FILES, "--token-file", "t"), "--token-file", "neither side is a served model"),
    ((*FILES, "--allow-nonfinite"), "--allow-nonfinite", "without --sample FILE"),
    (("fold", "a.onnx", "b.onnx", "--allow-nonfinite"), "--allow-nonfinite", "without --sample FILE"),
    (("fold", "a.onnx", "b.onnx", "--fold-all", "--form", "unfolded"), "--fold-all", "with --form unfolded"),
    (("export", "a.py:A", "--repository", "r", "--name", "n", "--even-if-slower"), "--even-if-slower", "--quantize"),
]


def run(*arguments, env=None):
    done = CliRunner().invoke(main, list(arguments), env=env)
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


@pytest.fixture
def serving(monkeypatch, tmp_path):
    """A folder of its own; ``serve`` ends there as soon as its options are accepted."""

    def end():
        raise SystemExit(2)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").write_text("token")
    monkeypatch.setattr(import_module("normfold.cli.serve"), "_end_at_signals", end)


@pytest.mark.parametrize(("arguments", "option", "why"), ALONE)
def test_an_option_without_the_one_that_it_needs_is_refused(serving, arguments, option, why):
    said = run(*arguments)
    assert f"'{option}'" in said
    assert "it does nothing" in said
    assert why in said


def test_an_option_with_the_one_that_it_needs_is_taken(serving):
    taken = ("--model-control", "poll", "--poll-seconds", "5", "--max-connection-age", "9")
    assert "it does nothing" not in run(*SERVE, *taken, "--max-connection-age-grace", "9")


def test_a_variable_or_a_line_of_the_file_that_does_nothing_is_warned_of_by_its_name(serving, tmp_path):
    said = run(*SERVE, env={"NORMFOLD_SERVE_POLL_SECONDS": "9"})
    assert said == "Warning: NORMFOLD_SERVE_POLL_SECONDS (--poll-seconds): it does nothing without --model-control poll"
    (tmp_path / "normfold.toml").write_text("[serve]\npoll-seconds = 9\n")
    assert run(*SERVE).startswith("Warning: poll-seconds in [serve] of normfold.toml: it does nothing")


def test_what_the_command_line_overrides_is_not_refused(serving, tmp_path):
    (tmp_path / "normfold.toml").write_text('[serve]\nmodel-control = "poll"\npoll-seconds = 9\n')
    assert "it does nothing" not in run(*SERVE)
    assert "it does nothing" not in run(*SERVE, "--model-control", "none")
    assert "it does nothing" in run(*SERVE, "--model-control", "none", "--poll-seconds", "9")


def test_every_need_names_options_of_its_command():
    from normfold.cli.connection import NAMES
    from normfold.cli.serve_needs import NEEDS

    of_serve = {parameter.name for parameter in _command("serve").params}
    assert {name for need in NEEDS for name in (*need.options, need.other)} <= of_serve
    asking = [name for name in COMMANDS if "token_file" in {parameter.name for parameter in _command(name).params}]
    assert asking
    assert all({*NAMES} <= {parameter.name for parameter in _command(name).params} for name in asking)
