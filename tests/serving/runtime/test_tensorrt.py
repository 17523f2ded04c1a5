"""TensorRT: what is asked of onnxruntime, what config.pbtxt may say, and what happens where it is not there."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnxruntime as ort
import pytest
from onnx import TensorProto

from normfold.protos import model_config as mc
from normfold.serving.catalog import config
from normfold.serving.catalog import load as loading
from normfold.serving.catalog.repository import Repository, SentFolder
from normfold.serving.errors import ConfigError, DeviceUnavailable
from normfold.serving.runtime import cuda_options, placement, tensorrt_options
from normfold.serving.runtime.devices import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    Device,
    parse_device,
    providers,
)
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings

TENSORRT = Device("tensorrt", 1)
ACCELERATOR = 'optimization {{ execution_accelerators {{ gpu_execution_accelerator {{ name: "tensorrt" {} }} }} }}'
GOT = (TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER)


def accelerated(**parameters):
    written = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items())
    return ACCELERATOR.format(written)


def options_of(text):
    written = config.parse(text)
    assert config.check(written, "m") == []
    return config.settings(written, SessionSettings()).tensorrt_options


def test_the_device_is_read_with_its_number():
    assert parse_device("tensorrt") == Device("tensorrt")
    assert parse_device("tensorrt:1") == TENSORRT
    assert str(TENSORRT) == "tensorrt:1"


def test_tensorrt_is_asked_for_before_cuda_on_the_same_gpu_with_a_cache_of_the_models_own(
    fake, fake_session, models, monkeypatch, tmp_path
):
    monkeypatch.setenv("NORMFOLD_CACHE_DIR", str(tmp_path))
    asked = fake(fake_session(providers=GOT, options={TENSORRT_PROVIDER: {"device_id": "1"}}))
    for factor in (2.0, 3.0):
        made = Session(models.scale(factor), TENSORRT, SessionSettings(cuda_options=(("use_tf32", "1"),)))
        assert made.device == "tensorrt:1"
    folders = []
    for _, ((first, tensorrt), (second, cuda)), fallback in asked:
        assert (first, second, fallback) == (TENSORRT_PROVIDER, CUDA_PROVIDER, False)
        assert cuda == {"device_id": "1", **cuda_options.DEFAULTS, "use_tf32": "1"}
        assert tensorrt["device_id"] == "1"
        assert tensorrt["trt_fp16_enable"] == "0"
        assert tensorrt["trt_engine_cache_enable"] == tensorrt["trt_timing_cache_enable"] == "1"
        folders.append(Path(tensorrt["trt_engine_cache_path"]))
    assert folders[0] != folders[1]  # onnxruntime would take the engine of one for the other: the names are the same
    for folder in folders:
        assert folder.parent == tmp_path / "tensorrt"
        assert folder.stat().st_mode & 0o777 == 0o700


def test_without_a_place_for_engines_there_is_no_cache(tmp_path):
    (tmp_path / "file").touch()
    assert tensorrt_options.cached(tmp_path / "file", b"model", "1.0") == {}
    assert tensorrt_options.cached(None, b"model", "1.0") == {}


def test_a_session_that_fell_back_to_cuda_is_an_error(fake, fake_session, models):
    fake(fake_session())
    with pytest.raises(DeviceUnavailable, match=r"tensorrt:1 was asked for, but onnxruntime fell back to CUDA.*Tensor"):
        Session(models.scale(), TENSORRT, SessionSettings())


def test_options_that_tensorrt_did_not_take_are_an_error_and_words_for_switches_are_none(fake, fake_session, models):
    fake(fake_session(providers=GOT, options={TENSORRT_PROVIDER: {"device_id": "1", "trt_fp16_enable": "False"}}))
    assert Session(models.scale(), TENSORRT, SessionSettings()).device == "tensorrt:1"
    fake(fake_session(providers=GOT, options={TENSORRT_PROVIDER: {"device_id": "1", "trt_fp16_enable": "True"}}))
    with pytest.raises(DeviceUnavailable, match=r"TensorRT provider did not take its options: .*trt_fp16_enable=1"):
        Session(models.scale(), TENSORRT, SessionSettings())


def test_nodes_on_cuda_are_named_in_the_log_and_convolutions_on_the_cpu_are_an_error(
    fake, fake_session, models, caplog
):
    options = {TENSORRT_PROVIDER: {"device_id": "1"}}
    fake(fake_session(providers=GOT, options=options, beside=("Softmax",)))
    with caplog.at_level(logging.WARNING):
        Session(models.scale(), TENSORRT, SessionSettings())
    assert "1 nodes run on CUDA and not on TensorRT: Softmax 'Softmax_0'" in caplog.text
    fake(fake_session(providers=GOT, options=options, left=("Conv",)))
    with pytest.raises(DeviceUnavailable, match="TensorRT was asked for, but onnxruntime left Conv"):
        Session(models.scale(), TENSORRT, SessionSettings())


def test_config_pbtxt_asks_for_tensorrt_in_tritons_words():
    assert options_of("") is None
    assert options_of(accelerated()) == ()
    assert dict(options_of(accelerated(precision_mode="FP16", max_workspace_size_bytes="99"))) == {
        "trt_fp16_enable": "1",
        "trt_max_workspace_size": "99",
    }
    shapes = {f"trt_profile_{end}_shapes": f"x:{n}x42x20,y:{n}" for n, end in enumerate(("min", "opt", "max"), 1)}
    assert dict(options_of(accelerated(**shapes))) == shapes


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"precision_mode": "INT8"}, "'precision_mode' .* must be FP32 or FP16, got 'INT8'"),
        ({"max_workspace_size_bytes": "0"}, "a number of bytes, at least 1"),
        ({"max_workspace_size_bytes": "9" * 5000}, "a number of bytes, at least 1"),
        ({"trt_builder_optimization_level": "6"}, "a number from 0 to 5"),
        ({"trt_engine_cache_path": "/etc"}, "has no parameter 'trt_engine_cache_path'; there are: precision_mode"),
        ({"precision_mode": "FP16", "trt_fp16_enable": "0"}, "contradicts another"),
        ({"trt_profile_min_shapes": "x:1x2"}, "min, opt and max shapes of its profile together"),
        ({"trt_profile_min_shapes": "x=1"}, "shapes such as x:1x42x20"),
    ],
)
def test_other_parameters_are_refused_before_a_session_is_made(parameters, words):
    with pytest.raises(ConfigError, match=words):
        options_of(accelerated(**parameters))


def test_the_accelerator_makes_tensorrt_of_cuda_and_of_auto_where_it_loads(fake, fake_session, models):
    settings = SessionSettings(tensorrt_options=(("trt_fp16_enable", "1"),))
    asked = fake(fake_session(providers=GOT, options={TENSORRT_PROVIDER: {"device_id": "0"}}))
    for device, rest in ((Device("cuda"), []), (Device("auto"), [CPU_PROVIDER])):
        assert Session(models.scale(), device, settings).device == "tensorrt:0"
        _, given, _ = asked.pop()
        assert [name for name, _ in given] == [TENSORRT_PROVIDER, CUDA_PROVIDER, *rest]
        assert given[0][1]["trt_fp16_enable"] == "1"


def test_auto_goes_on_with_cuda_where_tensorrt_does_not_load_and_says_so(monkeypatch, caplog):
    missing = "libnvinfer.so.10: cannot open shared object file"
    monkeypatch.setattr(placement, "why_not", lambda provider: missing if provider == TENSORRT_PROVIDER else "")
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    with caplog.at_level(logging.WARNING):
        assert placement.prepare(Device("auto"), GOT, tensorrt=True) == [CUDA_PROVIDER, CPU_PROVIDER]
    assert "models run on CUDA: TensorRT does not load: libnvinfer.so.10" in caplog.text
    assert placement.prepare(Device("auto"), GOT) == list(GOT)  # nobody asked
    with pytest.raises(DeviceUnavailable, match=r"TensorRT does not load: libnvinfer.*LD_LIBRARY_PATH"):
        placement.prepare(TENSORRT, GOT)


def test_a_build_without_tensorrt_is_an_error_that_says_so():
    for available in ([CPU_PROVIDER], [CUDA_PROVIDER, CPU_PROVIDER]):
        with pytest.raises(DeviceUnavailable, match="built without TensorRT"):
            providers(TENSORRT, available)


def load(models, tmp_path, device, text):
    models.write(tmp_path / "m", models.scale(), config=text)
    folder = Repository(tmp_path).models()["m"]
    with ThreadPoolExecutor(1) as executor:
        return loading.load(folder, config.parse(text), 1, loading.LoadOptions(device, 1), executor)


def test_a_model_that_asks_for_tensorrt_on_a_server_without_it_fails_alone(models, tmp_path):
    with pytest.raises(ConfigError, match="the server runs with --device cpu"):
        load(models, tmp_path, Device("cpu"), accelerated())
    if CUDA_PROVIDER not in ort.get_available_providers():
        with pytest.raises(ConfigError, match=r"accelerator cannot be used: .* built without TensorRT"):
            load(models, tmp_path, Device("cuda"), accelerated())


def test_model_config_says_cpu_where_auto_fell_back(models, tmp_path):
    if CUDA_PROVIDER in ort.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    loaded = load(models, tmp_path, Device("auto"), accelerated() + " instance_group { kind: KIND_GPU }")
    assert loaded.session.device == "cpu"
    assert loaded.config.instance_group[0].kind == mc.ModelInstanceGroup.KIND_CPU
    assert not loaded.config.optimization.execution_accelerators.gpu_execution_accelerator


@pytest.mark.parametrize(
    ("asked", "server", "got", "kind", "gpus", "accelerators"),
    [
        ("", TENSORRT, TENSORRT_PROVIDER, "KIND_GPU", [1], ["tensorrt"]),
        (accelerated(precision_mode="FP16"), Device("auto"), TENSORRT_PROVIDER, "KIND_GPU", [1], ["tensorrt"]),
        (accelerated(), Device("auto"), CUDA_PROVIDER, "KIND_GPU", [1], []),
        (accelerated(), Device("auto"), CPU_PROVIDER, "KIND_CPU", [], []),
    ],
)
def test_model_config_says_what_a_model_really_runs_on(
    fake, fake_session, models, asked, server, got, kind, gpus, accelerators
):
    data = models.identity(TensorProto.FLOAT, ["N", "L"])  # of an open size, so that nothing is run when it is loaded
    real = ort.InferenceSession(data, providers=[CPU_PROVIDER])
    made = fake_session(providers=(got,), options={got: {"device_id": "1"}})
    made.get_inputs, made.get_outputs = real.get_inputs, real.get_outputs
    fake(made)
    written = config.parse("instance_group { count: 1 } " + asked)
    with ThreadPoolExecutor(1) as executor:
        options = loading.LoadOptions(server, 1)
        full = loading.load(SentFolder("m", {"1/model.onnx": data}), written, 1, options, executor).config
    (group,) = full.instance_group
    assert (group.kind, list(group.gpus)) == (group.Kind.Value(kind), gpus)
    listed = full.optimization.execution_accelerators.gpu_execution_accelerator
    assert [accelerator.name for accelerator in listed] == accelerators
    if "FP16" in asked:
        assert listed[0].parameters["precision_mode"] == "FP16"
