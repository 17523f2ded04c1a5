"""Where nodes really run: sessions that claim CUDA and do otherwise are found out."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import onnxruntime as ort
import pytest
from onnx import TensorProto

from normfold.serving.catalog import config
from normfold.serving.catalog.load import LoadOptions, load
from normfold.serving.catalog.repository import SentFolder
from normfold.serving.errors import DeviceUnavailable, LoadError
from normfold.serving.runtime import placement
from normfold.serving.runtime.cuda_options import DEFAULTS
from normfold.serving.runtime.devices import CPU_PROVIDER, CUDA_PROVIDER, Device
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings

CUDA, AUTO = Device("cuda", 1), Device("auto")


def test_a_cuda_session_is_asked_for_alone_with_our_options(fake, fake_session, models):
    asked = fake(fake_session(options={CUDA_PROVIDER: {"device_id": "1", **DEFAULTS}}))
    made = Session(models.scale(), CUDA, SessionSettings(cuda_options=(("use_tf32", "0"), ("gpu_mem_limit", "99"))))
    ((options, providers, fallback),) = asked
    assert made.device == "cuda:1"
    assert providers == [(CUDA_PROVIDER, {"device_id": "1", **DEFAULTS, "gpu_mem_limit": "99"})]
    assert not fallback
    assert options.get_session_config_entry(placement.RECORD[0]) == "1"


def test_a_convolution_left_on_the_cpu_is_an_error_that_names_it(fake, fake_session, models):
    fake(fake_session(left=("Shape", "Conv")))
    with pytest.raises(DeviceUnavailable, match="left Conv 'Conv_0' on the CPU"):
        Session(models.scale(), CUDA, SessionSettings())


def test_shape_arithmetic_on_the_cpu_is_only_told(fake, fake_session, models, caplog):
    fake(fake_session(left=("Shape", "Gather")))
    with caplog.at_level(logging.WARNING):
        made = Session(models.scale(), CUDA, SessionSettings())
    assert (made.device, made.left_on_cpu) == ("cuda:1", "Shape 'Shape_0', Gather 'Gather_0'")
    assert "2 nodes stayed on the CPU: Shape 'Shape_0', Gather 'Gather_0'" in caplog.text


def test_auto_takes_a_convolution_on_the_cpu_and_tells(fake, fake_session, models, caplog):
    asked = fake(fake_session(left=("Conv",), options={CUDA_PROVIDER: {"device_id": "0"}}))
    with caplog.at_level(logging.WARNING):
        assert Session(models.scale(), AUTO, SessionSettings()).device == "cuda:0"
    assert [name for name, _ in asked[0][1]] == [CUDA_PROVIDER, CPU_PROVIDER]
    assert "Conv 'Conv_0'" in caplog.text


def test_options_that_were_not_taken_are_an_error(fake, fake_session, models):
    fake(fake_session(options={CUDA_PROVIDER: {"device_id": "1", "use_tf32": "1"}}))
    with pytest.raises(DeviceUnavailable, match="use_tf32=1 instead of 0"):
        Session(models.scale(), CUDA, SessionSettings())


def test_a_session_that_came_back_on_the_cpu_is_an_error(fake, fake_session, models):
    fake(fake_session(providers=(CPU_PROVIDER,)))
    with pytest.raises(DeviceUnavailable, match="fell back to CPUExecutionProvider"):
        Session(models.scale(), CUDA, SessionSettings())


def test_a_gpu_that_fails_is_told_from_a_model_that_does(fake, fake_session, models):
    fake(RuntimeError("CUDA failure 100: no CUDA-capable device is detected"))
    with pytest.raises(DeviceUnavailable, match="no CUDA-capable device"):
        Session(models.scale(), CUDA, SessionSettings())
    fake(RuntimeError("this is no model"))
    with pytest.raises(LoadError, match="this is no model"):
        Session(models.scale(), CUDA, SessionSettings())


def test_a_missing_library_is_named_and_auto_goes_on_without_cuda(monkeypatch, caplog):
    monkeypatch.setattr(placement, "why_not", lambda provider: "libcublas.so.13: cannot open shared object file")
    both = [CUDA_PROVIDER, CPU_PROVIDER]
    with pytest.raises(DeviceUnavailable, match=r"cuda:1 was asked for, but CUDA does not load: libcublas\.so\.13"):
        placement.prepare(CUDA, both)
    with caplog.at_level(logging.WARNING):
        assert placement.prepare(AUTO, both) == [CPU_PROVIDER]
    assert "models run on the CPU: CUDA does not load: libcublas.so.13" in caplog.text
    assert placement.prepare(Device("cpu"), both) == both


def test_auto_says_what_the_installed_onnxruntime_is_built_without(monkeypatch, caplog):
    monkeypatch.setattr(placement, "why_not", lambda provider: "")
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    placement.warn_once.cache_clear()
    for available, left, words in (
        ([CPU_PROVIDER], [CPU_PROVIDER], "models run on the CPU: the installed onnxruntime"),
        ([CUDA_PROVIDER, CPU_PROVIDER], [CUDA_PROVIDER, CPU_PROVIDER], "models run on CUDA: the installed onnxruntime"),
    ):
        caplog.clear()
        for _ in range(2):
            assert placement.prepare(AUTO, available, tensorrt=True) == left
        (record,) = caplog.records  # once, however many models there are
        assert record.getMessage().startswith(words)
        assert "is built without" in record.getMessage()


def test_clients_and_the_models_line_are_told_what_stayed_on_the_cpu(fake, fake_session, models):
    data = models.identity(TensorProto.FLOAT, ["N", "L"])  # of an open size, so that nothing is run when it is loaded
    real = ort.InferenceSession(data, providers=[CPU_PROVIDER])
    made = fake_session(left=("Shape",))
    made.get_inputs, made.get_outputs = real.get_inputs, real.get_outputs
    sent_back = config.parse('parameters { key: "nodes_on_cpu" value { string_value: "Conv \'old\'" } }')
    assert config.check(sent_back, "m") == ["parameter 'nodes_on_cpu' has no effect: the server sets it"]
    folder = SentFolder("m", {"1/model.onnx": data})
    with ThreadPoolExecutor(1) as executor:
        on_cpu = load(folder, sent_back, 1, LoadOptions(Device("cpu"), 1), executor)
        fake(made)
        on_gpu = load(folder, sent_back, 1, LoadOptions(CUDA, 1), executor)
    assert "nodes_on_cpu" not in on_cpu.config.parameters
    assert on_gpu.config.parameters["nodes_on_cpu"].string_value == "Shape 'Shape_0'"
    assert on_gpu.describe().endswith(" on cuda:1, nodes on the CPU: Shape 'Shape_0'")


def test_a_build_without_cuda_says_why_it_does_not_load():
    if CUDA_PROVIDER in ort.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    placement.why_not.cache_clear()
    assert "libonnxruntime_providers" in placement.why_not(CUDA_PROVIDER)


def test_the_real_session_tells_its_nodes(models):
    options = ort.SessionOptions()
    options.add_session_config_entry(*placement.RECORD)
    made = ort.InferenceSession(models.scale(), options, providers=[CPU_PROVIDER])
    assert "Mul" in [operator for operator, _ in placement.nodes_of(made, CPU_PROVIDER) or []]
