"""The comparison on a GPU: whether there is one, one small network on the CPU's routes, and the page from figures."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime
import pytest
import torch
from benches.gpu import __main__ as program
from benches.gpu import measure as measuring
from benches.gpu import present
from benches.gpu.measure import made, measure, warm
from benches.gpu.networks import FACTS, NAMES, expected, inputs, named, prepare, prepared
from benches.gpu.report import ratios, report, times
from benches.gpu.routes import COMPILED, CPU, CPU_EAGER, CUDA, FOLDED, GRAPHS, ON_CPU, TENSORRT, fixed, form_on_cuda
from benches.zoo.network import Network

from normfold.serving.runtime import placement
from normfold.serving.runtime.devices import CPU_PROVIDER, CUDA_PROVIDER, Device
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings


def small() -> torch.nn.Module:
    nn = torch.nn
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 1))


SMALL = Network("small", "torch", small, ("N", 2, "L"), ({"N": 2, "L": 9}, {"N": 3, "L": 7}))


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A machine whose CUDA loads, and whose nvidia-smi says what the test says."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(placement, "why_not", lambda provider: "")
    monkeypatch.setenv("PATH", str(tmp_path))

    def says(text: str, code: int = 0) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n", encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return says


def test_gpus_are_what_nvidia_smi_lists_where_cuda_loads(gpu, capsys):
    gpu("NVIDIA X, 580.1\nNVIDIA Y, 580.1")
    assert present.gpus() == ["NVIDIA X, 580.1", "NVIDIA Y, 580.1"]
    assert present.main() == 0
    assert capsys.readouterr().out == "NVIDIA X, 580.1\nNVIDIA Y, 580.1\n"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 0, "no GPU: nvidia-smi: No such file or directory"),
        ("No devices were found", 6, "no GPU: nvidia-smi lists none: No devices were found"),
        ("", 0, "no GPU: nvidia-smi lists none"),
    ],
)
def test_without_a_gpu_the_reason_is_what_nvidia_smi_says(gpu, capsys, text, code, said):
    if text is not None:
        gpu(text, code)
    assert present.main() == 1
    assert capsys.readouterr().err == said + "\n"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("libcuda.so.1: cannot open shared object file", "no GPU: NVIDIA's driver is not here (libcuda.so.1: "),
        ("libcudnn.so.9: cannot open shared object file", "no CUDA: libcudnn.so.9: cannot open"),
    ],
)
def test_a_library_that_is_missing_is_the_reason(gpu, monkeypatch, missing, said):
    gpu("NVIDIA X, 580.1")
    monkeypatch.setattr(placement, "why_not", lambda provider: missing)
    with pytest.raises(present.NoGpu) as reason:
        present.gpus()
    assert str(reason.value).startswith(said)


def test_an_onnxruntime_without_cuda_is_the_reason(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU_PROVIDER])
    with pytest.raises(present.NoGpu, match=r"no CUDA: the installed onnxruntime\S* \S+ is built without it"):
        present.gpus()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small network, prepared for batch 1 and 3."""
    place = tmp_path_factory.mktemp("small")
    prepare(SMALL, place, (1, 3))
    return place


def test_a_network_is_prepared_with_its_forms_weights_and_float64_answers(folder):
    subject = prepared(SMALL, folder)
    assert subject.published in subject.forms
    assert {"unfolded", "folded"} <= set(subject.forms)
    with torch.inference_mode():
        answer = subject.module.double()(torch.from_numpy(inputs(SMALL, 3)).double())
    assert answer.dtype == torch.float64
    np.testing.assert_allclose(expected(folder, 3), answer.numpy(), rtol=1e-12)


def test_routes_are_checked_and_timed_and_the_others_are_cells_with_their_reasons(folder):
    def wrong(subject, x):
        return lambda: ON_CPU[CPU](subject, x)() * np.float32(1.001)

    def broken(subject, x):
        raise RuntimeError("a kernel\nis missing")

    routes = {
        **ON_CPU,
        GRAPHS: wrong,
        CUDA: broken,
        FOLDED: form_on_cuda(prepared(SMALL, folder).published),
    }
    figures = measure(SMALL, folder, routes, (1, 3), 3, 600.0)
    assert list(figures["cells"]) == ["1", "3"]
    for cell in figures["cells"].values():
        assert len(cell[CPU]["ms"]) == len(cell[CPU_EAGER]["ms"]) == 3
        assert cell[CPU]["error"] < 1e-5
        assert cell[GRAPHS]["wrong"]
        assert "ms" not in cell[GRAPHS]
        assert cell[CUDA] == {"failed": "RuntimeError: a kernel is missing"}
        assert cell[FOLDED] == {"none": "the published form is this one"}


def test_a_slow_route_is_not_made_and_a_slow_run_not_repeated_without_time(folder, monkeypatch):
    subject = prepared(SMALL, folder)
    monkeypatch.setattr(measuring, "prepared", lambda network, place: subject)
    routes = {**ON_CPU, TENSORRT: lambda subject, x: pytest.fail("it takes minutes")}
    cell = measure(SMALL, folder, routes, (1,), 3, 0.0)["cells"]["1"]
    assert cell[TENSORRT] == {"failed": "TimeoutError: no time was left to make it"}
    assert len(cell[CPU]["ms"]) == 3  # one route is timed whatever the time
    assert "no time was left for them" in cell[CPU_EAGER]["failed"]
    with pytest.raises(TimeoutError, match="took more than 1 s"):
        made(lambda subject, x: time.sleep(300), subject, inputs(SMALL, 1), 1.5)


def test_what_cannot_be_compiled_in_advance_is_passed_over(folder):
    asked = []

    def broken(subject, x):
        asked.append(len(x))
        raise RuntimeError

    warm(prepared(SMALL, folder), SMALL, {CPU: broken, COMPILED: broken}, (1, 3))
    assert asked == [1, 3]  # the slow one alone


def test_a_graph_with_fixed_shapes_gives_the_same_answer(folder):
    subject, x = prepared(SMALL, folder), inputs(SMALL, 3)
    for content in subject.forms.values():
        session = Session(fixed(content, x), Device("cpu"), SessionSettings())
        assert [tensor.shape for tensor in (*session.inputs, *session.outputs)] == [x.shape, expected(folder, 3).shape]
        np.testing.assert_allclose(session.run({"x": x}, [session.outputs[0].name])[0], expected(folder, 3), atol=1e-5)


def test_there_are_five_networks():
    assert [named(name).name for name in NAMES] == list(NAMES)
    assert len(NAMES) == 5
    with pytest.raises(ValueError, match="no network 'other'"):
        named("other")


RESULTS = {
    "m5": {
        "cells": {
            "1": {
                CPU: {"error": 1e-7, "ms": [4.0, 4.0, 4.0]},
                CUDA: {"error": 1e-7, "ms": [2.0, 1.0, 2.0]},
                GRAPHS: {"error": 3e-3, "wrong": True},
                TENSORRT: {"failed": "DeviceUnavailable: libnvinfer is missing"},
                FOLDED: {"none": "the published form is this one"},
            },
            "32": {
                CPU: {"error": 1e-7, "ms": [8.0, 8.0, 8.0]},
                TENSORRT: {"failed": "DeviceUnavailable: libnvinfer is missing"},
            },
        }
    },
    "gunpoint": {"failed": "given up after 9 s"},
}


def test_the_page_has_times_ratios_and_the_reasons_of_what_is_missing():
    assert times(RESULTS).splitlines()[2:] == [
        "| m5, 1 | 4 | 2 | – | wrong | not timed |",
        "| m5, 32 | 8 | – | – | – | not timed |",
    ]
    shown = ratios(RESULTS).splitlines()
    assert shown[0] == f"| network, batch | {CPU} / {CUDA} |"
    assert shown[2].startswith("| m5, 1 | 2.00 ± ")
    assert shown[-1] == "| geometric mean | 2.00 |"
    page = report(RESULTS, ["NVIDIA X, 580.1"], 15)
    assert "GPU: NVIDIA X, driver 580.1." in page
    assert f"torch {torch.__version__.partition('+')[0]}" in page
    assert page.partition("## Not timed\n\n")[2].splitlines() == [
        "- gunpoint: given up after 9 s",
        f"- {GRAPHS} (m5, 1): wrong, by 3e-03",
        f"- {TENSORRT} (m5, 1; m5, 32): DeviceUnavailable: libnvinfer is missing",
    ]


def test_a_page_without_a_pair_says_so():
    alone = {"m5": {"cells": {"1": {CPU: {"error": 0.0, "ms": [1.0, 1.0]}}}}}
    assert ratios(alone) == "No two routes of a pair were timed."
    assert "Every route was right and was timed." in report(alone, [], 5)


def test_the_exit_code_is_of_our_routes_alone(capsys):
    assert program.judged({"m5": {"cells": {"1": RESULTS["m5"]["cells"]["1"]}}}, (CPU, CUDA)) == 0
    assert program.judged(RESULTS, (CPU, CUDA)) == 1
    assert capsys.readouterr().err.splitlines() == [
        "failed: gunpoint: given up after 9 s",
        f"failed: m5, 32, {CUDA}: not measured",
    ]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    return program.main()


def test_without_a_gpu_the_program_ends_with_one_sentence(monkeypatch, capsys):
    def none():
        raise present.NoGpu("no GPU: nvidia-smi lists none")

    monkeypatch.setattr(program, "gpus", none)
    assert run(monkeypatch) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("no GPU: nvidia-smi lists none; ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--networks", "m5,other"), "--networks: no other; there are surnames, gunpoint"),
        (("--cpu-only", "--write"), "--write: RESULTS.md is of a GPU"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(monkeypatch, capsys, arguments, said):
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments)
    assert said in capsys.readouterr().err


def test_the_table_is_written_where_a_gpu_was(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "HERE", tmp_path)
    monkeypatch.setattr(program, "gpus", lambda: ["NVIDIA X, 580.1"])
    monkeypatch.setattr(program, "measured", lambda names, work, end, found: RESULTS)
    assert run(monkeypatch, "--write") == 1
    assert "| m5, 1 | 4 | 2 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == RESULTS
    assert "driver 580.1" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


def steps(monkeypatch, script: str) -> None:
    """Let every step be a process that runs ``script`` with the folder and the network's name."""
    monkeypatch.setattr(program, "command", lambda work, *more: [sys.executable, "-c", script, str(work), more[-1]])


def test_a_step_that_fails_costs_its_own_network(monkeypatch, tmp_path, capsys):
    script = f"""
import json, pathlib, sys
place = pathlib.Path(sys.argv[1]) / sys.argv[2]
if not place.is_dir():
    if sys.argv[2] == "a": sys.exit("out of memory")
    place.mkdir()
    (place / {FACTS!r}).touch()
elif sys.argv[2] == "b": sys.exit("a driver failed")
else: print(json.dumps({{"cells": {{}}}}))
"""
    steps(monkeypatch, script)
    results = program.measured(["a", "b", "c"], tmp_path, time.perf_counter() + 600, [])
    assert results == {
        "a": {"failed": "not prepared: exit code 1: out of memory"},
        "b": {"failed": "ended with exit code 1: a driver failed"},
        "c": {"cells": {}},
    }
    assert "c: measured" in capsys.readouterr().err


def test_steps_without_end_are_ended(monkeypatch, tmp_path):
    steps(monkeypatch, "import time; time.sleep(300)")
    assert program.prepared_all(["a", "b"], tmp_path, time.perf_counter() + 0.2) == dict.fromkeys(
        "ab", "no time was left"
    )
    monkeypatch.setattr(program, "GRACE_SECONDS", 0.1)
    assert program.in_a_process("a", tmp_path, 0.1) == {"failed": "given up after 0 s"}


def test_the_caches_of_a_step_are_in_its_folder_and_its_options_those_of_the_program(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu", "--quick"])
    asked = program.command(tmp_path, "--measure", "m5")
    assert asked[1:] == ["-m", "benches.gpu", "--quick", "--work", str(tmp_path), "--measure", "m5"]
    caches = program.environment(tmp_path)
    assert all(str(tmp_path) in caches[name] for name in ("NORMFOLD_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"))


def test_the_steps_prepare_and_measure_a_network(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "named", lambda name: SMALL)
    common = ("--cpu-only", "--quick", "--work", str(tmp_path))
    assert run(monkeypatch, *common, "--prepare", "small") == 0
    assert run(monkeypatch, *common, "--seconds", "9", "--measure", "small") == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(figures["cells"]) == {"1"}
    assert "ms" in figures["cells"]["1"][CPU]
