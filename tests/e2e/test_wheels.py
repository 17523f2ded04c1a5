"""No onnxruntime, the CPU's wheel, the GPU's and both, each really installed: the messages of a server on each device.

``make test-wheels`` makes the environments and names their folder in WHEELS. The GPU's wheel is met on a machine
without CUDA: the commonest failure of a GPU server, as it happens.
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

pytestmark = pytest.mark.wheels

MISSING = "Error: no onnxruntime is installed; for the CPU: pip install 'normfold[cpu]'"


def environment(name: str) -> str:
    """The interpreter of the environment with the wheel ``name``: "none", "cpu", "gpu" or "both"."""
    path = Path(os.environ.get("WHEELS", "")) / name / "bin" / "python"
    if not path.is_file():
        pytest.skip("no environments with the wheels of onnxruntime: run make test-wheels")
    return str(path)


@pytest.fixture
def gpu() -> str:
    """The interpreter with onnxruntime-gpu, where CUDA does not load."""
    python = environment("gpu")
    script = "from normfold.serving.runtime.placement import why_not; print(why_not('CUDAExecutionProvider'))"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    if not done.stdout.strip():
        pytest.skip("CUDA loads on this machine; these tests are for one where it does not")
    return python


def command(python: str, repository: Path, device: str) -> list[str]:
    options = ["--repository", str(repository), "--listen", "127.0.0.1:0", "--workers", "1", "--device", device]
    return [python, "-m", "normfold", "serve", *options]


def refused(python: str, repository: Path, device: str) -> tuple[int, str]:
    """The exit code and the one line of a server that must not start."""
    done = subprocess.run(command(python, repository, device), capture_output=True, text=True, timeout=60, check=False)
    (line,) = done.stderr.strip().splitlines()
    assert "listening" not in done.stdout
    return done.returncode, line


def served(python: str, repository: Path, device: str) -> str:
    """Everything that a server with every model on the CPU wrote to stderr, from its start to SIGTERM."""
    server = subprocess.Popen(
        command(python, repository, device), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
        _, report = server.communicate(timeout=30)
    finally:
        watchdog.cancel()
        server.kill()
    models = [line for line in lines if " version " in line]
    assert models
    assert all(line.endswith("on cpu") for line in models)
    assert server.returncode == 0
    return report


def doctor(python: str, device: str) -> tuple[int, dict]:
    done = subprocess.run(
        [python, "-m", "normfold", "doctor", "--json", "--device", device],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("device", ["cpu", "auto", "cuda"])
def test_without_onnxruntime_a_server_names_both_extras(repository, device):
    python = environment("none")
    code, line = refused(python, repository, device)
    assert (code, line.startswith(MISSING), "'normfold[gpu]'" in line) == (1, True, True)
    code, report = doctor(python, device)
    assert (code, report["runtimes"], f"Error: {report['problems'][0]}") == (1, [], line)


def test_without_onnxruntime_the_client_asks_a_server(repository, start):
    python = environment("none")
    script = (
        "import sys, numpy; from normfold import Client\n"
        "x = numpy.ones((1, 4), numpy.float32)\n"
        "print(Client(sys.argv[1]).infer('m', {'x': x})['y'].tolist())"
    )
    with start(repository) as server:
        asked = [python, "-c", script, server.address]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[[3.0, 3.0, 3.0, 3.0]]\n", "")


@pytest.mark.parametrize("device", ["cpu", "auto", "cuda"])
def test_two_wheels_are_an_error_on_every_device_with_the_command_that_mends_it(repository, device):
    python = environment("both")
    code, line = refused(python, repository, device)
    assert code == 1
    assert re.match(r"Error: onnxruntime \S+ and onnxruntime-gpu \S+ are both installed and overwrite", line)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'normfold[cpu]' (or 'normfold[gpu]')" in line
    code, report = doctor(python, device)
    assert (code, f"Error: {report['problems'][0]}") == (1, line)
    assert [runtime.split()[0] for runtime in report["runtimes"]] == ["onnxruntime", "onnxruntime-gpu"]


@pytest.mark.parametrize(("device", "word"), [("cuda", "CUDA"), ("tensorrt", "TensorRT")])
def test_the_wheel_for_the_cpu_ends_with_3_on_a_gpu_and_says_that_it_is_built_without(repository, device, word):
    code, line = refused(environment("cpu"), repository, device)
    assert code == 3
    assert re.match(
        rf"Error: device {device}:0 was asked for, but the installed onnxruntime \S+ is built without {word}", line
    )
    assert "pip uninstall -y onnxruntime && pip install 'normfold[gpu]'" in line


def test_auto_on_the_wheel_for_the_cpu_serves_and_says_once_that_it_is_built_without_cuda(repository):
    report = served(environment("cpu"), repository, "auto")
    assert len(re.findall(r"models run on the CPU: the installed onnxruntime \S+ is built without CUDA", report)) == 1
    assert "built without" not in served(environment("cpu"), repository, "cpu")


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_ends_with_3_and_one_line_that_names_the_library(gpu, repository, device):
    code, line = refused(gpu, repository, device)
    assert code == 3
    assert line.startswith(f"Error: device {device}:0 was asked for, but CUDA does not load: lib")
    assert ".so" in line


def test_auto_serves_on_the_cpu_and_says_why(gpu, repository):
    assert served(gpu, repository, "auto").count("models run on the CPU: CUDA does not load: lib") == 1


def test_doctor_names_the_library_of_each_provider_and_ends_with_1_only_for_what_is_asked(gpu):
    for device, expected in (("cpu", 0), ("auto", 0), ("cuda", 1), ("tensorrt", 1)):
        code, report = doctor(gpu, device)
        assert code == expected
        cpu, *others = report["providers"]
        assert cpu["works"]
        assert all(not one["works"] and re.fullmatch(r"lib\S+\.so\S* is missing", one["reason"]) for one in others)
