"""``make demo`` from its first line to its last, and its end when something fails."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

#: Runs the demo over networks that are exported already, to test only the steps after the export.
AFTER_EXPORT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("demo", sys.argv[1])
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)
demo.export = lambda *arguments: None
sys.argv[:] = ["demo", "--repository", sys.argv[2]]
{change}
sys.exit(demo.main())
"""


def _environment():
    return {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def _refuses_connections(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


@pytest.mark.timeout(600)  # a busy machine takes its time
def test_the_demo_runs_from_nothing_to_its_last_line(root, tmp_path):
    command = [sys.executable, str(root / "examples" / "demo.py"), "--repository", str(tmp_path / "repository")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=580, env=_environment(), check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "\x1b" not in run.stdout  # colours are for terminals
    titles = re.findall(r"^(\d)\. ", run.stdout, re.MULTILINE)
    assert titles == list("12345678")
    assert len(re.findall(r"^\d+\.\d s$", run.stdout, re.MULTILINE)) == 8
    assert len(re.findall(r"^BatchNorms +[1-9]\d*(?: +0)+ *$", run.stdout, re.MULTILINE)) == 2
    assert re.search(r"^surnames +same class 12 of 12; ", run.stdout, re.MULTILINE)
    assert re.search(r"^gunpoint +same class 6 of 6; ", run.stdout, re.MULTILINE)
    for p50, p99 in re.findall(r"p50 (\S+) ms +p99 (\S+) ms", run.stdout):
        assert 0 < float(p50) <= float(p99)
    assert "\nstopped\n" in run.stdout
    assert "All done in" in run.stdout.splitlines()[-2]
    listening = re.search(r"listening on (\S+)", run.stdout)
    assert listening is not None
    assert _refuses_connections(listening[1])
    for model in ("surnames", "gunpoint"):
        assert (tmp_path / "repository" / model / "1" / "model.onnx").is_file()


def test_a_failed_export_ends_the_demo_with_its_message(root, tmp_path):
    (tmp_path / "file").touch()
    command = [
        sys.executable,
        str(root / "examples" / "demo.py"),
        "--repository",
        str(tmp_path / "file" / "repository"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, env=_environment(), check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("Error: ")
    assert "Traceback" not in run.stdout + run.stderr
    assert "The demo failed: exporting surnames ended with exit code 1" in run.stdout


def _after_export(root, repository, change=""):
    script = AFTER_EXPORT.format(change=change)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(root / "examples" / "demo.py"), str(repository)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment(),
    )  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_no_server_behind(root, trained, number, code):
    demo = _after_export(root, trained)
    assert demo.stdout is not None
    address = ""
    for line in demo.stdout:
        if found := re.match(r"listening on (\S+)", line):
            address = found[1]
            demo.send_signal(number)
            break
    rest, _ = demo.communicate(timeout=60)
    assert demo.returncode == code, rest
    assert "Traceback" not in rest
    assert address
    assert _refuses_connections(address)


def test_a_server_that_does_not_start_fails_the_demo(root, tmp_path):
    demo = _after_export(root, tmp_path / "missing")
    printed, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1, printed
    assert "Traceback" not in printed
    assert "The demo failed: the server did not start" in printed


def test_answers_that_are_not_pytorchs_fail_the_demo(root, trained):
    change = "asked = demo.ask_surnames; demo.ask_surnames = lambda *a: asked(*a) * 1.0001"
    demo = _after_export(root, trained, change)
    printed, _ = demo.communicate(timeout=120)
    assert demo.returncode == 1, printed
    assert "The demo failed: the served surnames does not answer as PyTorch does" in printed
    listening = re.search(r"listening on (\S+)", printed)
    assert listening is not None
    assert _refuses_connections(listening[1])
