"""Control characters in texts from files and servers do not reach the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.table import Table

from normfold.cli.main import main
from normfold.cli.plain_console import PlainConsole
from normfold.cli.terminal import shown
from normfold.serving.client import client

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
