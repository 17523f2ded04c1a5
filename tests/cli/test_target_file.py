"""A file that could not be written is refused before a server is asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from normfold.cli.main import main


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        (("infer", "m", "--input", "x=1", "--address", "127.0.0.1:1"), "--save", "a.npz"),
        (("bench", "127.0.0.1:1", "--model", "m"), "--out", "a.svg"),
    ],
)
def test_a_folder_that_is_missing_or_may_not_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], option: str, name: str
) -> None:
    missing = CliRunner().invoke(main, [*command, option, str(tmp_path / "no" / name)])
    monkeypatch.setattr(os, "access", lambda *asked: False)
    forbidden = CliRunner().invoke(main, [*command, option, str(tmp_path / name)])
    assert (missing.exit_code, forbidden.exit_code) == (2, 2)
    assert missing.stderr.endswith(f"there is no folder {tmp_path / 'no'}; make it first\n")
    assert forbidden.stderr.endswith(f"this user may not write to the folder {tmp_path}; name another\n")
