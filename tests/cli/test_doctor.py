"""``normfold doctor``: the report for a person, for a program, and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from normfold.cli.doctor import doctor
from normfold.serving import diagnosis
from normfold.serving.diagnosis import Cpus, Diagnosis, Provider
from normfold.serving.runtime import devices

WHOLE = Diagnosis(
    python="3.12.1",
    versions={"normfold": "1.0", "torch": None},
    runtimes=["onnxruntime-gpu 1.31.1"],
    providers=[
        Provider("CPUExecutionProvider", True),
        Provider("CUDAExecutionProvider", False, "libcudnn.so.9 is missing"),
    ],
    cpus=Cpus(64, 8, 2.5, 3, 3, 1),
    cache="/cache/normfold",
    telemetry_off=True,
    problems=[],
)


@pytest.fixture
def whole(monkeypatch):
    monkeypatch.setattr(diagnosis, "diagnose", lambda device: WHOLE)


def test_a_person_reads_what_is_there_what_works_and_what_follows(whole):
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 0
    for words in (
        "torch                     not installed",
        "onnxruntime from          onnxruntime-gpu 1.31.1",
        "CPUExecutionProvider      works",
        "CUDAExecutionProvider     does not work: libcudnn.so.9 is missing",
        "3 (64 in the machine, 8 by affinity, a cgroup quota of 2.5): 3 workers, in each a run of at most 1 thread",
        "onnxruntime telemetry     off",
        "Cache                     /cache/normfold",
        "A server on --device cpu can start.",
    ):
        assert words in result.stdout


def test_a_program_reads_the_same_as_json(whole):
    result = json.loads(CliRunner().invoke(doctor, ["--json"]).stdout)
    assert result["can_serve"] is True
    assert result["providers"][1] == {
        "name": "CUDAExecutionProvider",
        "works": False,
        "reason": "libcudnn.so.9 is missing",
    }
    assert result["cpus"]["quota"] == 2.5


def test_without_onnxruntime_it_reports_and_ends_with_1(monkeypatch):
    monkeypatch.setattr(devices, "DISTRIBUTIONS", ())
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 1
    assert "onnxruntime from          not installed" in result.stdout
    assert "Error: no onnxruntime is installed" in result.stderr
    assert json.loads(CliRunner().invoke(doctor, ["--json"]).stdout)["can_serve"] is False


@pytest.mark.parametrize("command", ["doctor", "serve"])
def test_two_real_distributions_of_onnxruntime_are_found_by_their_metadata(tmp_path, command):
    for name in ("onnxruntime", "onnxruntime-gpu"):
        folder = tmp_path / f"{name.replace('-', '_')}-1.31.1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n", encoding="utf-8")
    arguments = [command] if command == "doctor" else [command, "--repository", str(tmp_path), "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "normfold", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Error: onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 are both installed and overwrite")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'normfold[cpu]'" in line


def test_the_report_itself_needs_neither_onnxruntime_nor_torch():
    script = (
        "import sys; sys.modules['onnxruntime'] = sys.modules['torch'] = None\n"
        "from normfold.cli.main import main; main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "CPUExecutionProvider      works" in done.stdout


def test_a_device_that_is_not_known_is_one_message():
    result = CliRunner().invoke(doctor, ["--device", "gpu"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: device 'gpu' is not known: use cpu")
