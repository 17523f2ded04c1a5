"""Ctrl-C in the first moments of a command, while Python imports."""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from normfold import interrupts

#: A module in the place of one that the command imports, at once or later; Ctrl-C comes while it is imported.
IMPORTED = "import signal\nsignal.raise_signal(signal.SIGINT)\nprint('went on')\n"


def script(root: Path) -> str:
    """What pip writes as the console script."""
    import tomllib

    value = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]["normfold"]
    entry = EntryPoint("normfold", value, "console_scripts")
    return f"import sys; from {entry.module} import {entry.attr}; sys.exit({entry.attr}())"


@pytest.mark.parametrize("module", ["click", "numpy"])
@pytest.mark.parametrize("how", ["module", "script"])
def test_ctrl_c_while_a_command_is_imported_says_stopped_and_nothing_else(root, tmp_path, module, how):
    (tmp_path / f"{module}.py").write_text(IMPORTED)
    start = ["-m", "normfold"] if how == "module" else ["-c", script(root)]
    paths = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root / 'src')!r}]"
    (tmp_path / "sitecustomize.py").write_text(paths)
    command = [sys.executable, *start, "infer", "m", "--input", "x=1"]
    env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (interrupts.INTERRUPTED, "", "stopped\n")


def test_ctrl_c_when_the_command_is_over_shows_no_traceback(root, tmp_path):
    late = "import atexit, signal, sys; atexit.register(signal.raise_signal, signal.SIGINT)"
    start = f"{late}; sys.argv = ['normfold', '--help']; from normfold.__main__ import run; run()"
    env = {"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", start]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    assert done.stdout.startswith("Usage: ")


def test_a_process_that_ignores_ctrl_c_goes_on_to_ignore_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.end_at_once()
        interrupts.raise_again()
        interrupts.end_silently()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_that_has_begun_can_catch_ctrl_c():
    before = signal.getsignal(signal.SIGINT)
    try:
        interrupts.end_at_once()
        interrupts.raise_again()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("words", "module", "goes_on"),
    [
        (["serve"], "click", True),
        (["infer", "m"], "click", False),
        (["infer", "serve", "--input", "x=1"], "numpy", False),  # a model of that name
    ],
)
def test_a_hang_up_while_a_command_is_imported_ends_all_but_a_server(root, tmp_path, words, module, goes_on):
    """SIGHUP asks a server for a look at its repository: a server that had just begun ended."""
    (tmp_path / f"{module}.py").write_text(IMPORTED.replace("SIGINT", "SIGHUP") + "raise SystemExit(7)\n")
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root / 'src')!r}]")
    command = [sys.executable, "-m", "normfold", *words]
    env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env, cwd=tmp_path)
    assert (done.returncode, done.stdout) == ((7, "went on\n") if goes_on else (-signal.SIGHUP, ""))


def test_how_a_child_ended_is_known_although_the_caller_ignores_sigchld(root, tmp_path):
    ignored = "import signal, subprocess, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    child = "subprocess.run([sys.executable, '-c', 'raise SystemExit(3)']).returncode"
    start = f"sys.argv = ['normfold', '--help']\ntry: run()\nfinally: print('ended with', {child})"
    env = {"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", f"{ignored}\nfrom normfold.__main__ import run\n{start}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "ended with 3", done.stderr
