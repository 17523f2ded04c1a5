"""A command whose standard output cannot take what it prints."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from normfold.cli.output import json_of, printing


def run(*arguments: str, output: int | IO[bytes], **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "normfold", *arguments]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | environment
    return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, env=env, timeout=60, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [("--help",), ("token", "ward")])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_without_room_is_one_line(arguments: tuple[str, ...], unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = run(*arguments, output=full, PYTHONUNBUFFERED=unbuffered)
    assert done.stderr == b"Error: the output cannot be written: No space left on device\n"
    assert done.returncode == 1


def test_a_character_that_the_output_lacks_is_escaped(tmp_path: Path) -> None:
    version = tmp_path / "ł" / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(b"")
    done = run("sign", str(tmp_path / "ł" / "m"), output=subprocess.PIPE, PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u0142" in done.stdout


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252"])
def test_json_is_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written, value = io.BytesIO(), {"é😀\udcff\x81": "\N{LATIN SMALL LETTER L WITH STROKE}"}
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    printing(lambda: print(json_of(value), flush=True))
    assert json.loads(written.getvalue().decode(encoding)) == value
    if encoding == "utf-8":
        assert "é😀".encode() in written.getvalue()
