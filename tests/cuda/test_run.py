"""``run.sh`` from its arguments to its exit code: with a Python that plays its part, and in truth up to the GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from tests.cuda import loads
from tests.cuda.test_parts import wheel

FAKE = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
    *environment.py*arrived*) echo "load 1 of 1: whole" ;;
    *environment.py*build*) [ -z "${NO_LOAD:-}" ] || { echo "environment: no load is there"; exit 1; }; echo "$0" ;;
    *benches.gpu.present*)
        case "${LD_LIBRARY_PATH:-}" in *nvidia/cu13/lib*) echo "A GPU, 1.0"; exit 0 ;; esac
        echo "${GPU:-A GPU, 1.0}"; [ -z "${GPU:-}" ] ;;
    *pytest*) sleep "${SLEEP:-0}"; echo "1 failed, 2 passed"; exit "${TESTS:-0}" ;;
    *benches.gpu*) mkdir -p benches/gpu; echo page > benches/gpu/RESULTS.md; exit "${BENCH:-0}" ;;
esac
"""


@pytest.fixture
def machine(tmp_path, root):
    """A copy of run.sh with a test marked so, and a Python that plays its part."""
    copied = tmp_path / "tests" / "cuda" / "run.sh"
    copied.parent.mkdir(parents=True)
    shutil.copy(root / "tests" / "cuda" / "run.sh", copied)
    (tmp_path / "tests" / "test_marked.py").write_text("@pytest.mark.cuda\n", encoding="utf-8")
    (tmp_path / "tests" / "test_other.py").write_text("pass\n", encoding="utf-8")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(FAKE, encoding="utf-8")
    (tmp_path / "bin" / "python3").chmod(0o755)
    return tmp_path


def ran(machine: Path, *arguments: str, **set_: str) -> tuple[int, str, str]:
    """The exit code of run.sh, what it printed, and with what its Python was called."""
    path = f"{machine / 'bin'}{os.pathsep}{os.environ['PATH']}"
    clean = {key: value for key, value in os.environ.items() if key not in ("LD_LIBRARY_PATH", "CUDA_BENCH")}
    done = subprocess.run(
        [str(machine / "tests" / "cuda" / "run.sh"), *arguments],
        cwd=machine,
        env=clean | {"PATH": path, "CALLS": str(machine / "calls")} | set_,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    calls = machine / "calls"
    return done.returncode, done.stdout + done.stderr, calls.read_text(encoding="utf-8") if calls.exists() else ""


def test_without_a_folder_for_results_it_says_how_it_is_called(machine):
    code, said, calls = ran(machine)
    assert (code, calls) == (2, "")
    assert said.startswith("usage: ")


def test_keep_says_what_has_arrived_and_runs_nothing(machine):
    code, said, calls = ran(machine, "keep")
    assert (code, said) == (0, "load 1 of 1: whole\n")
    assert calls == "tests/cuda/environment.py arrived build/cuda\n"


def test_all_steps_run_and_their_results_are_in_the_folder(machine):
    code, said, calls = ran(machine, "out", CUDA_BENCH="--networks m5 --quick")
    assert code == 0
    assert re.search(r"all passed in \d+ s; the results are in .*/out\n$", said)
    assert "-m pytest -m cuda tests/test_marked.py -p no:cacheprovider\n" in calls
    assert calls.splitlines()[-1].endswith("--networks m5 --quick")
    logs = {"environment.log", "gpu.log", "tests.log", "bench.log"}
    assert {path.name for path in (machine / "out").iterdir()} == logs | {"RESULTS.md"}


def test_a_page_of_an_earlier_run_is_not_a_result(machine):
    (machine / "benches" / "gpu").mkdir(parents=True)
    old = machine / "benches" / "gpu" / "results.json"
    old.write_text("{}", encoding="utf-8")
    os.utime(old, (1e9, 1e9))
    ran(machine, "out")
    assert not (machine / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"TESTS": "1"}, "failed: tests: exit code 1: 1 failed, 2 passed"),
        ({"BENCH": "3"}, "failed: bench: exit code 3: "),
    ],
)
def test_one_step_that_fails_leaves_the_other_and_is_the_exit_code(machine, what, said):
    code, printed, calls = ran(machine, "out", **what)
    assert code == 1
    assert said in printed
    assert "pytest" in calls
    assert "benches.gpu --write" in calls


def test_without_loads_nothing_is_run(machine):
    code, said, calls = ran(machine, "out", NO_LOAD="1")
    assert code == 1
    assert "failed: environment: exit code 1: environment: no load is there" in said
    assert calls.count("\n") == 1


def test_without_a_gpu_the_last_lines_say_why_and_nothing_is_run(machine):
    code, said, calls = ran(machine, "out", GPU="no GPU: nvidia-smi lists none")
    assert code == 1
    assert "failed: gpu: exit code 1: no GPU: nvidia-smi lists none\n" in said
    assert "pytest" not in calls


def test_where_cudas_libraries_are_not_found_the_loader_is_shown_where_they_are(machine):
    (machine / "lib" / "python3.12" / "site-packages" / "nvidia" / "cu13" / "lib").mkdir(parents=True)
    code, said, calls = ran(machine, "out", GPU="no CUDA: libcudnn.so.9: cannot open shared object file")
    assert code == 0
    assert "once more, with LD_LIBRARY_PATH=" in said
    assert calls.count("benches.gpu.present") == 2


def test_a_step_without_end_is_ended_and_no_other_is_begun_when_the_time_is_over(machine):
    code, said, calls = ran(machine, "out", SLEEP="300", CUDA_SECONDS="3")
    assert code == 1
    assert re.search(r"failed: tests: ended after [123] s\nfailed: bench: not begun, no time was left\n", said)
    assert "benches.gpu --write" not in calls


def test_in_truth_it_comes_as_far_as_the_gpu(tmp_path, root):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    loads.cut([wheel(tmp_path / "index", "carried", "1.0", "carried", 900)], tmp_path / "cuda", 1000)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    (tmp_path / "bin" / "python3").chmod(0o755)
    done = subprocess.run(
        [str(root / "tests" / "cuda" / "run.sh"), str(tmp_path / "out")],
        env=os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CUDA_FOLDER": str(tmp_path / "cuda")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1
    assert re.search(
        r"failed: gpu: exit code 1: no CUDA: the installed onnxruntime \S+ is built without it\n", done.stdout
    )
