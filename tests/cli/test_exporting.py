"""Errors of the commands that export: one sentence each, whatever raised them."""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from normfold.cli import exporting
from normfold.cli.exporting import errors_as_messages, prints_apart, steps
from normfold.cli.main import main

NETS = """
from torch import nn

class Net(nn.Module):
    def forward(self, x):
        return x * 2
"""
EXPORT = ("export", "nets.py:Net", "--input", "x=FP32[N,3]", "--repository", "r", "--name", "m")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def normfold(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_an_error_that_nobody_foresaw_is_one_sentence_with_the_step_and_the_users_line(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normfold.export import pipeline

    def raises(*arguments: object, **options: object) -> None:
        code = compile("def forward(x):\n    raise RuntimeError('scale issue\\nat more lines')", "nets.py", "exec")
        space: dict[str, object] = {}
        exec(code, space)  # the test's own text
        space["forward"](1)  # type: ignore[operator]

    monkeypatch.setattr(pipeline, "fold_and_prove", raises)
    done = normfold(*EXPORT)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: stopped at the step 'load the network' at nets.py:2 in forward")
    assert done.stderr.endswith("nothing was written: RuntimeError: scale issue (--debug shows Python's traceback)\n")
    assert done.stderr.count("\n") == 1
    debugged = normfold(*EXPORT, "--debug")
    assert isinstance(debugged.exception, RuntimeError)


def test_a_network_that_ends_the_program_ends_in_one_sentence_with_its_line(directory: Path) -> None:
    (directory / "nets.py").write_text(NETS.replace("return x * 2", "raise SystemExit('bad shape')"))
    done = normfold(*EXPORT)
    assert done.exit_code == 1
    assert "nets.py:6 in forward" in done.stderr
    assert "bad shape" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (directory / "r").exists()


def test_a_network_that_computes_in_bfloat16_itself_is_told_how_to_get_it(directory: Path) -> None:
    (directory / "nets.py").write_text(NETS.replace("return x * 2", "return (x.bfloat16() @ x.bfloat16().T).float()"))
    done = normfold(*EXPORT)
    if done.exit_code:  # onnxruntime has no such kernel here
        assert "the network computes in bfloat16 itself" in done.stderr
        assert "--dtype bf16" in done.stderr
        assert done.stderr.count("\n") == 1


def test_wrong_options_are_still_usage_errors(directory: Path) -> None:
    done = normfold(*EXPORT, "--dtype", "fp16", "--quantize", "int8")
    assert (done.exit_code, "give only one of" in done.stderr) == (2, True)


def test_weights_with_another_digest_than_the_option_says_are_not_exported(directory: Path) -> None:
    weights = directory / "w.safetensors"
    weights.write_bytes(b"another file")
    digest = hashlib.sha256(b"the file that was meant").hexdigest()
    export = (*EXPORT, "--weights", str(weights))
    done = normfold(*export, "--weights-sha256", digest)
    assert done.exit_code == 1
    assert f"but --weights-sha256 is {digest}: this is another file, or it was changed or damaged" in done.stderr
    right = normfold(*export, "--weights-sha256", hashlib.sha256(b"another file").hexdigest())
    assert "--weights-sha256" not in right.stderr  # it gets as far as the content, which is no file of weights
    assert not (directory / "r").exists()
    for arguments in ((*export, "--weights-sha256", digest[:-1]), (*EXPORT, "--weights-sha256", digest)):
        refused = normfold(*arguments)
        assert (refused.exit_code, "--weights-sha256 takes 64 digits" in refused.stderr) == (2, True)


def test_verify_of_what_is_not_there_names_what_is(directory: Path) -> None:
    (directory / "repo" / "ecg" / "2").mkdir(parents=True)
    (directory / "repo" / "ecg" / "2" / "model.onnx").touch()
    (directory / "empty").mkdir()
    for sides, expected in (
        (("nets.py:Net", "repo/ecg/99"), "there is no file or directory 'repo/ecg/99'; 'repo/ecg' holds 2. Expected"),
        (
            ("repo/ecg", "nets.py:Net"),
            "'repo/ecg' holds no model.onnx; it is a model's directory, so name a version: repo",
        ),
        (("net.onnx", "nets.py:Net"), "there is no file or directory 'net.onnx'. Expected FILE.py:NAME"),
        (
            ("nets.py:Net", "repo"),
            "'repo' holds no model.onnx; it is a repository, so name a model and a vers",
        ),
        (("nets.py:Net", "http://h:1/m"), "'http://h:1/m': leave out http://, a served model is HOST:PORT/MODEL"),
        (("nets.py:Net", "empty"), "'empty' holds no model.onnx\n"),
    ):
        done = normfold("verify", *sides)
        assert done.exit_code == 1
        assert expected in done.stderr, done.stderr


def relu(file: Path) -> bytes:
    text = '<ir_version: 9, opset_import: ["": 18]> g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), file)
    return file.read_bytes()


def test_a_folded_file_is_to_be_compared_with_what_it_was_made_of(directory: Path) -> None:
    relu(directory / "my net.onnx")
    done = normfold("fold", "my net.onnx", "out.onnx")
    assert done.exit_code == 0, done.output
    assert "next: normfold verify 'my net.onnx' out.onnx\n" in done.output


@pytest.mark.parametrize("option", [[], ["--overwrite"]])
@pytest.mark.parametrize("target", ["net.onnx", "../{}/net.onnx", "link.onnx"])
def test_a_file_is_not_folded_into_itself(directory: Path, target: str, option: list[str]) -> None:
    before = relu(directory / "net.onnx")
    (directory / "link.onnx").hardlink_to(directory / "net.onnx")
    done = normfold("fold", "net.onnx", target.format(directory.name), *option)
    assert done.exit_code == 1
    assert "is the file that is read: the folded graph would replace the only one" in done.stderr
    assert (directory / "net.onnx").read_bytes() == before


def test_a_command_that_ctrl_c_stops_says_what_it_has_written(capsys: pytest.CaptureFixture[str]) -> None:
    def pressed() -> None:
        with errors_as_messages(debug=False) as done:
            done.append("out.onnx is written")
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        pressed()
    assert (end.value.code, capsys.readouterr().err) == (130, "stopped; out.onnx is written\n")


@pytest.mark.parametrize(
    "command",
    [
        ("export", "a.py:B", "--input", "x=FP32[N]", "--repository", "r", "--name", "m"),
        ("fold", "a.onnx", "b.onnx"),
        ("verify", "a.onnx", "a.onnx"),
    ],
)
def test_an_installation_without_the_exporter_says_what_to_install(command: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("a.py", "a.onnx"):
        (tmp_path / name).touch()
    start = "import sys; sys.modules |= {'onnx_ir': None, 'torch': None}; from normfold.__main__ import run; run()"
    arguments = [sys.executable, "-c", start, *command]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    said = r"Error: this command needs (torch|onnx_ir), which is not installed: pip install 'normfold\[export,cpu\]'\n"
    assert re.fullmatch(said, done.stderr)


def test_what_the_users_code_prints_is_no_output_of_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    with prints_apart():
        print("Python")
        print("first", file=sys.__stdout__)
        os.write(1, b"descriptor\n")
        ctypes.CDLL(None).puts(b"C")
        subprocess.run(["echo", "child"], check=True)
    print("result", flush=True)
    out, err = capfd.readouterr()
    assert out == "result\n"
    assert sorted(err.split()) == ["C", "Python", "child", "descriptor", "first"]


def test_the_users_code_may_print_where_standard_output_is_closed() -> None:
    program = "import os; os.close(1); from normfold.cli.exporting import prints_apart\nwith prints_apart(): print('x')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "x\n")


def test_a_thread_of_the_users_code_that_reads_a_file_of_c_holds_up_nothing() -> None:
    program = """
import ctypes, threading
from normfold.cli.exporting import prints_apart
library, taken, over = ctypes.CDLL(None), threading.Event(), threading.Event()
library.fopen.restype, library.flockfile.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
file = library.fopen(b"/dev/null", b"r")
threading.Thread(target=lambda: (library.flockfile(file), taken.set(), over.wait()), daemon=True).start()
taken.wait()
with prints_apart():
    library.puts(b"C")
print("over", flush=True)
over.set()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "C\n")


def test_a_note_of_ctrl_c_says_what_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    stop = KeyboardInterrupt()
    stop.add_note("'repository/m/1' is published")
    with pytest.raises(SystemExit), errors_as_messages(debug=False):
        raise stop
    assert capsys.readouterr().err == "stopped; 'repository/m/1' is published\n"


class Log(io.StringIO):
    """A log that says when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def flush(self) -> None:
        self.written.set()


@pytest.mark.parametrize("quiet", [False, True])
def test_where_there_is_no_terminal_a_step_that_takes_long_is_a_line(
    monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    """The log of a pipeline was empty until the end of an export."""
    monkeypatch.setattr(sys, "stderr", log := Log())
    with steps(quiet) as (_, progress):
        progress("load the network")
        monkeypatch.setattr(exporting, "LONG_SECONDS", 0.0)
        progress("capture the graph")
        assert quiet or log.written.wait(60)
        monkeypatch.undo()
        progress("publish")
    assert log.getvalue() == ("" if quiet else "still at the step 'capture the graph' after 0 s\n")
    assert all(thread.finished.is_set() for thread in threading.enumerate() if isinstance(thread, threading.Timer))
