"""The real onnxruntime-gpu wheel on a machine without CUDA: the commonest failure of a GPU server, as it happens.

``make test-gpu-wheel`` makes the environment and names its interpreter in GPU_PYTHON.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu_wheel


@pytest.fixture
def python() -> str:
    """The interpreter of an environment with onnxruntime-gpu, where CUDA does not load."""
    path = os.environ.get("GPU_PYTHON", "")
    if not Path(path).is_file():
        pytest.skip("no environment with onnxruntime-gpu: run make test-gpu-wheel")
    script = "from normfold.serving.placement import why_not; print(why_not('CUDAExecutionProvider'))"
    done = subprocess.run([path, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    if not done.stdout.strip():
        pytest.skip("CUDA loads on this machine; these tests are for one where it does not")
    return path


def _command(python: str, repository: Path, device: str) -> list[str]:
    options = ["--repository", str(repository), "--listen", "127.0.0.1:0", "--device", device]
    return [python, "-m", "normfold", "serve", *options]


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_ends_with_3_and_one_line_that_names_the_library(python, repository, device):
    done = subprocess.run(_command(python, repository, device), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"Error: device {device}:0 was asked for, but CUDA does not load: lib")
    assert ".so" in line
    assert "listening" not in done.stdout


def test_auto_serves_on_the_cpu_and_says_why(python, repository):
    server = subprocess.Popen(
        _command(python, repository, "auto"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(60, server.kill)
    watchdog.start()
    try:
        lines = []
        for line in server.stdout:
            lines.append(line.rstrip())
            if line.startswith("listening"):
                break
        server.send_signal(signal.SIGTERM)
        _, told = server.communicate(timeout=30)
    finally:
        watchdog.cancel()
        server.kill()
    models = [line for line in lines if " version " in line]
    assert models
    assert all(line.endswith("on cpu") for line in models)
    assert told.count("models run on the CPU: CUDA does not load: lib") == 1


def test_doctor_names_the_library_of_each_provider_and_ends_with_1_only_for_what_is_asked(python):
    for device, code in (("cpu", 0), ("auto", 0), ("cuda", 1), ("tensorrt", 1)):
        done = subprocess.run(
            [python, "-m", "normfold", "doctor", "--json", "--device", device],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == code
        cpu, *gpus = json.loads(done.stdout)["providers"]
        assert cpu["works"]
        assert all(not gpu["works"] and re.fullmatch(r"lib\S+\.so\S* is missing", gpu["reason"]) for gpu in gpus)
