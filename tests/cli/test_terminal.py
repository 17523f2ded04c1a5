"""Control characters in texts from files and servers do not reach the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.table import Table

from normfold.cli.connection import said_of
from normfold.cli.main import main
from normfold.cli.plain_console import PlainConsole
from normfold.cli.terminal import message, shown
from normfold.serving.client import client
from normfold.serving.errors import Status

HOSTILE = "red\x1b[31m\x1b]0;title\x07\rbold\x9b1m"


def test_only_control_characters_are_escaped() -> None:
    assert shown(f"{HOSTILE}\nä…") == "red\\x1b[31m\\x1b]0;title\\x07\\rbold\\x9b1m\nä…"


def test_an_error_is_printable_on_a_terminal(tmp_path: Path) -> None:
    nowhere = f"unix:{tmp_path}/{HOSTILE}"
    result = CliRunner().invoke(main, ["infer", "a", "--input", "x=1", "--address", nowhere], color=True)
    assert result.exit_code == 1
    assert "red\\x1b[31m" in result.stderr
    assert result.stderr.rstrip("\n").isprintable()


def test_a_usage_error_is_printable_on_a_terminal() -> None:
    result = CliRunner().invoke(main, ["infer", "a", "--input", HOSTILE, "--input", HOSTILE], color=True)
    assert result.exit_code == 2
    assert all(line.isprintable() for line in result.stderr.splitlines())


def test_a_console_escapes_lines_and_cells() -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=True, no_color=True, highlight=False, width=200)
    table = Table(HOSTILE)
    table.add_row(HOSTILE)
    console.print(f"note: {HOSTILE}", markup=False)
    console.print(table)
    assert file.getvalue().count("\\x1b]0;title\\x07") == 3
    assert "\x1b]" not in file.getvalue()
    assert "\x9b" not in file.getvalue()


@pytest.mark.parametrize("arguments", [("infer", "a", "--input", "x=1"), ("healthcheck",), ("load", "a")])
def test_ctrl_c_has_an_exit_code_of_its_own(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "Client", interrupted)
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stderr.strip()) == (130, "stopped")


TWO_LINES = "one\nError: two\x1b[31m"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config", TWO_LINES, "serve"),
        ("--config", "hostile.toml", "serve"),
        (TWO_LINES,),
        ("infer", "a", "--input", "x=1", "--address", TWO_LINES),
        ("bench", "127.0.0.1:1", "--model", "m", "--out", f"{TWO_LINES}/a.svg"),
        ("fold", f"{TWO_LINES}.onnx", "b.onnx"),
        ("export", f"{TWO_LINES}.py:Net", "--input", "x=FP32[1]", "--repository", "r", "--name", "n"),
        ("token", "name", "--tokens", f"{TWO_LINES}/tokens"),
    ],
)
def test_a_message_that_repeats_what_a_user_gives_has_no_line_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hostile.toml").write_text('[serve]\n"one\\nError: two\\u001b[31m" = 1\n')
    done = CliRunner().invoke(main, arguments, color=True)
    lines = done.stderr.splitlines()
    assert done.exit_code
    assert all(line.isprintable() for line in lines)
    assert sum(line.startswith("Error: ") for line in lines) == 1
    assert "one\\nError: two\\x1b[31m" in done.stderr


@pytest.mark.parametrize("arguments", [("infer", "a", "--input", "x=1"), ("healthcheck",), ("load", "a")])
def test_a_call_without_an_answer_in_time_is_told_with_the_option(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    def late(*arguments: object, **options: object) -> None:
        raise client.ClientError(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")

    monkeypatch.setattr(client, "Client", late)
    done = CliRunner().invoke(main, arguments)
    assert done.stderr == "Error: DEADLINE_EXCEEDED: Deadline Exceeded; --timeout SECONDS waits longer\n"


def test_a_limit_of_the_server_is_not_told_with_the_option_of_the_client() -> None:
    error = client.ClientError(Status.DEADLINE_EXCEEDED, "nothing of the request came for 30 s")
    assert said_of(error, "127.0.0.1:8001") == str(error)


def test_an_error_of_use_keeps_the_lines_of_our_own_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise client.ClientError(Status.INTERNAL, "two\n  lines\nError: and a name")

    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").touch()
    monkeypatch.setattr(client, "Client", refused)
    done = CliRunner().invoke(main, ["use", "m", "1", "--repository", str(tmp_path)])
    assert done.stderr.startswith("Error: INTERNAL: two\n  lines\\nError: and a name\nconfig.pbtxt is unchanged")


def test_a_variable_with_an_end_of_a_line_is_named_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMFOLD_SERVE_ONE\nError: two\x1b[31m", "1")
    done = CliRunner().invoke(main, ["serve", "--repository", "."])
    assert "Error: NORMFOLD_SERVE_ONE\\nError: two\\x1b[31m: normfold serve has no option" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_message_of_ours_keeps_its_lines() -> None:
    assert message("two\n  lines\n  and\ta name\nin it") == "two\n  lines\n  and\\ta name\\nin it"
