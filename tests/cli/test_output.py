"""A command whose standard output cannot take what it prints."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from normfold.cli.main import main
from normfold.cli.output import json_of, printing, told_after


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_token_that_cannot_be_shown_is_not_valid(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    with Path("/dev/full").open("wb") as full:
        done = run("token", "ward", "--tokens", str(tokens), output=full)
    assert (done.returncode, b"No space left" in done.stderr) == (1, True)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_every_version_is_signed_where_the_output_has_no_room(tmp_path: Path) -> None:
    for number in "12":
        (tmp_path / "m" / number).mkdir(parents=True)
        (tmp_path / "m" / number / "model.onnx").write_bytes(b"")
    with Path("/dev/full").open("wb") as full:
        done = run("sign", str(tmp_path / "m"), output=full)
    assert all((tmp_path / "m" / number / "manifest.json").exists() for number in "12")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"No space left on device; wrote " in done.stderr


def test_an_output_without_room_says_what_is_done_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        with told_after("version 1 of m is published"):
            raise OSError(errno.ENOSPC, "No space left on device")

    standard_output = os.dup(1)
    try:
        with pytest.raises(SystemExit):
            printing(command)
    finally:
        os.dup2(standard_output, 1)
    said = "Error: the output cannot be written: No space left on device; version 1 of m is published\n"
    assert capsys.readouterr().err == said


def test_ctrl_c_while_a_command_prints_says_what_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*printed: object, **options: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(b"")
    monkeypatch.setattr("normfold.cli.sign.one_line", pressed)
    with pytest.raises(SystemExit) as end:
        main(["sign", str(tmp_path)])
    assert (end.value.code, capsys.readouterr().err) == (130, f"stopped; wrote {tmp_path / '1' / 'manifest.json'}\n")


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


def test_numbers_that_json_lacks_are_texts() -> None:
    rows = {"y": [[float("nan"), float("inf"), -float("inf"), 1.5, 2, None, True]], "n": (float("nan"),)}
    written = json_of(rows)
    assert json.loads(written, parse_constant=pytest.fail) == {
        "y": [["NaN", "Infinity", "-Infinity", 1.5, 2, None, True]],
        "n": ["NaN"],
    }
    assert json_of({"y": [1.5]}, indent=1) == json.dumps({"y": [1.5]}, indent=1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "Error: there is not enough memory\n"),
        (MemoryError("Unable to allocate 8 GiB"), "Error: there is not enough memory: Unable to allocate 8 GiB\n"),
        (RuntimeError("can't start new thread"), "Error: no thread can be started; a limit of processes"),
    ],
)
def test_too_little_memory_and_too_few_threads_are_one_line(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        printing(command)
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(said)


def test_another_error_of_the_program_is_not_taken_for_a_limit() -> None:
    def command() -> None:
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        printing(command)


def test_a_fault_before_that_is_not_hidden() -> None:
    def command() -> None:
        try:
            raise KeyError("a fault")
        finally:
            raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="start new thread"):
        printing(command)
