"""What is found out about an installation, with the real onnxruntime and with ones that fail in every known way."""

from __future__ import annotations

import base64

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from normfold.serving import diagnosis
from normfold.serving.errors import StartError
from normfold.serving.process.cpus import available_cpus, default_workers
from normfold.serving.runtime import devices
from normfold.serving.runtime.devices import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER

FAKE = """
import sys
class Array:
    def item(self): return float({answer})
class InferenceSession:
    def __init__(self, model, providers, enable_fallback):
        self.name, self.options = providers[0]
        if self.name == "CUDAExecutionProvider":
            assert self.options == {{"device_id": "1"}}
            {cuda}
    def get_providers(self): return [self.name, "CPUExecutionProvider"]
    def run(self, names, feeds): return [Array()]
def preload_dlls(): print("libcudart.so not found")
def get_available_providers(): return ["CUDAExecutionProvider", "CPUExecutionProvider"]
"""


@pytest.fixture
def found(monkeypatch, tmp_path):
    """What is diagnosed for cuda:1 where onnxruntime behaves as given when CUDA is asked for."""

    def find(cuda="pass", answer=6):
        (tmp_path / "onnxruntime.py").write_text(FAKE.format(cuda=cuda, answer=answer), encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(diagnosis, "_SERVE", 'print("true")')
        return diagnosis.diagnose("cuda:1")

    return find


def by_name(found):
    return {provider.name: provider for provider in found.providers}


def test_too_little_memory_is_a_sentence():
    assert diagnosis.reason("Traceback\n  File 'm.py'\nMemoryError\n") == "there is not enough memory"


def test_the_tiny_model_is_one_convolution_of_one_number():
    data = base64.b64decode(diagnosis._MODEL)
    assert [node.op_type for node in onnx.load_from_string(data).graph.node] == ["Conv"]
    three, two = (np.full((1, 1, 1), value, np.float32) for value in (3, 2))
    (answer,) = ort.InferenceSession(data, providers=[CPU_PROVIDER]).run(None, {"x": three, "w": two})
    assert answer == [[[6]]]


def test_the_real_onnxruntime_runs_on_the_cpu_and_a_server_can_start(monkeypatch, tmp_path):
    monkeypatch.setenv("NORMFOLD_CACHE_DIR", str(tmp_path))
    found = diagnosis.diagnose()
    assert found.problems == []
    assert by_name(found)[CPU_PROVIDER].works
    assert [text.split()[1] for text in found.runtimes] == [ort.__version__]
    assert found.versions["numpy"] == np.__version__
    assert found.cache == str(tmp_path)
    assert found.cpus.usable == available_cpus()
    assert found.cpus.workers == default_workers("cpu", "") == available_cpus() // found.cpus.threads


def test_a_provider_that_was_not_built_in_is_a_problem_only_where_it_is_asked_for(found):
    report = by_name(found())
    assert report[CUDA_PROVIDER].works
    assert report[TENSORRT_PROVIDER] == diagnosis.Provider(
        TENSORRT_PROVIDER, False, "this onnxruntime is built without it"
    )


def test_a_provider_that_fell_back_in_silence_is_found_out_and_the_library_named(found):
    missing = "Failed to load libonnxruntime_providers_cuda.so: libcudnn.so.9: cannot open shared object file: No such"
    report = found(f'self.name = "CPUExecutionProvider"; sys.stderr.write("[E] {missing}\\n")')
    assert by_name(report)[CUDA_PROVIDER].reason == "libcudnn.so.9 is missing"
    assert report.problems == [
        "--device cuda:1 needs CUDAExecutionProvider: libcudnn.so.9 is missing; install the GPU build: "
        "pip uninstall -y onnxruntime && pip install 'normfold[gpu]', or use --device cpu"
    ]
    report = found('self.name = "CPUExecutionProvider"')
    assert by_name(report)[CUDA_PROVIDER].reason == "onnxruntime fell back to CPUExecutionProvider and does not say why"


def test_what_a_provider_raises_is_its_reason(found):
    report = found('raise RuntimeError("CUDA failure 35: the driver is older than the runtime")')
    assert (
        by_name(report)[CUDA_PROVIDER].reason == "RuntimeError: CUDA failure 35: the driver is older than the runtime"
    )


def test_a_provider_that_ends_its_process_does_not_end_the_report(found):
    report = found("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert "ended by signal 11" in by_name(report)[CUDA_PROVIDER].reason
    assert by_name(report)[CPU_PROVIDER].works


def test_a_provider_that_counts_wrong_does_not_work(found):
    report = found(answer=7)
    assert by_name(report)[CUDA_PROVIDER] == diagnosis.Provider(CUDA_PROVIDER, False, "3 times 2 is 7 on it")


def test_an_onnxruntime_that_cannot_be_imported_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libstdc++.so.6: version not found')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = diagnosis.diagnose()
    assert found.problems == ["ImportError: libstdc++.so.6: version not found"]
    assert found.providers == []


def test_none_and_two_onnxruntime_are_problems_with_the_command_that_mends_them(monkeypatch):
    monkeypatch.setattr(devices, "DISTRIBUTIONS", ())
    found = diagnosis.diagnose()
    assert found.runtimes == found.providers == []
    assert "pip install 'normfold[cpu]'" in found.problems[0]
    monkeypatch.setattr(devices, "DISTRIBUTIONS", ("numpy", "click"))
    assert "pip uninstall -y numpy click && pip install" in diagnosis.diagnose().problems[0]


def test_a_device_that_is_not_known_is_refused():
    with pytest.raises(StartError, match="'gpu' is not known"):
        diagnosis.diagnose("gpu")
