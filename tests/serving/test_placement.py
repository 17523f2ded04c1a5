"""Where nodes really run: sessions that claim CUDA and do otherwise are found out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from normfold.serving import placement, session
from normfold.serving.cuda_options import DEFAULTS
from normfold.serving.devices import CPU_PROVIDER, CUDA_PROVIDER, Device
from normfold.serving.errors import DeviceUnavailable, LoadError
from normfold.serving.session import Session, SessionSettings

CUDA, AUTO = Device("cuda", 1), Device("auto")


@dataclass
class FakeSession:
    """A session as onnxruntime would give it on a GPU: it claims CUDA, and may have left nodes on the CPU."""

    left: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    providers: tuple[str, ...] = (CUDA_PROVIDER, CPU_PROVIDER)

    def get_providers(self):
        return list(self.providers)

    def get_provider_options(self):
        return {CUDA_PROVIDER: self.options}

    def get_provider_graph_assignment_info(self):
        def part(provider, operators):
            nodes = [SimpleNamespace(op_type=operator, name=f"{operator}_0") for operator in operators]
            return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

        return [part(CUDA_PROVIDER, ["Conv"]), part(CPU_PROVIDER, self.left)]

    def get_inputs(self):
        return []

    get_outputs = get_overridable_initializers = get_inputs


@pytest.fixture
def fake(monkeypatch):
    """A machine whose CUDA loads: sessions are what the test says, and what was asked of them is kept."""
    asked = []

    def use(made):
        def create(data, options, *, providers, enable_fallback):
            asked.append((options, providers, enable_fallback))
            if isinstance(made, Exception):
                raise made
            return made

        monkeypatch.setattr(session.ort, "InferenceSession", create)
        return asked

    monkeypatch.setattr(session, "available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(placement, "why_not_cuda", lambda: "")
    monkeypatch.setattr(placement.ort, "preload_dlls", lambda: None, raising=False)
    return use


def test_a_cuda_session_is_asked_for_alone_with_our_options(fake, models):
    asked = fake(FakeSession(options={"device_id": "1", **DEFAULTS}))
    made = Session(models.scale(), CUDA, SessionSettings(cuda_options=(("use_tf32", "0"), ("gpu_mem_limit", "99"))))
    ((options, providers, fallback),) = asked
    assert made.device == "cuda:1"
    assert providers == [(CUDA_PROVIDER, {"device_id": "1", **DEFAULTS, "gpu_mem_limit": "99"})]
    assert not fallback
    assert options.get_session_config_entry(placement.RECORD[0]) == "1"


def test_a_convolution_left_on_the_cpu_is_an_error_that_names_it(fake, models):
    fake(FakeSession(left=("Shape", "Conv")))
    with pytest.raises(DeviceUnavailable, match="left Conv 'Conv_0' on the CPU"):
        Session(models.scale(), CUDA, SessionSettings())


def test_shape_arithmetic_on_the_cpu_is_only_told(fake, models, caplog):
    fake(FakeSession(left=("Shape", "Gather")))
    with caplog.at_level(logging.WARNING):
        assert Session(models.scale(), CUDA, SessionSettings()).device == "cuda:1"
    assert "2 nodes stayed on the CPU: Shape 'Shape_0', Gather 'Gather_0'" in caplog.text


def test_auto_takes_a_convolution_on_the_cpu_and_tells(fake, models, caplog):
    asked = fake(FakeSession(left=("Conv",), options={"device_id": "0"}))
    with caplog.at_level(logging.WARNING):
        assert Session(models.scale(), AUTO, SessionSettings()).device == "cuda:0"
    assert [name for name, _ in asked[0][1]] == [CUDA_PROVIDER, CPU_PROVIDER]
    assert "Conv 'Conv_0'" in caplog.text


def test_options_that_were_not_taken_are_an_error(fake, models):
    fake(FakeSession(options={"device_id": "1", "use_tf32": "1"}))
    with pytest.raises(DeviceUnavailable, match="use_tf32=1 instead of 0"):
        Session(models.scale(), CUDA, SessionSettings())


def test_a_session_that_came_back_on_the_cpu_is_an_error(fake, models):
    fake(FakeSession(providers=(CPU_PROVIDER,)))
    with pytest.raises(DeviceUnavailable, match="fell back to CPUExecutionProvider"):
        Session(models.scale(), CUDA, SessionSettings())


def test_a_gpu_that_fails_is_told_from_a_model_that_does(fake, models):
    fake(RuntimeError("CUDA failure 100: no CUDA-capable device is detected"))
    with pytest.raises(DeviceUnavailable, match="no CUDA-capable device"):
        Session(models.scale(), CUDA, SessionSettings())
    fake(RuntimeError("this is no model"))
    with pytest.raises(LoadError, match="this is no model"):
        Session(models.scale(), CUDA, SessionSettings())


def test_a_missing_library_is_named_and_auto_goes_on_without_cuda(monkeypatch, caplog):
    monkeypatch.setattr(placement, "why_not_cuda", lambda: "libcublas.so.13: cannot open shared object file")
    both = [CUDA_PROVIDER, CPU_PROVIDER]
    with pytest.raises(DeviceUnavailable, match=r"cuda:1 was asked for, but CUDA does not load: libcublas\.so\.13"):
        placement.prepare(CUDA, both)
    with caplog.at_level(logging.WARNING):
        assert placement.prepare(AUTO, both) == [CPU_PROVIDER]
    assert "models run on the CPU: CUDA does not load: libcublas.so.13" in caplog.text
    assert placement.prepare(Device("cpu"), both) == both


def test_a_build_without_cuda_says_why_it_does_not_load():
    if CUDA_PROVIDER in ort.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    placement.why_not_cuda.cache_clear()
    assert "libonnxruntime_providers" in placement.why_not_cuda()


def test_the_real_session_tells_its_nodes(models):
    options = ort.SessionOptions()
    options.add_session_config_entry(*placement.RECORD)
    made = ort.InferenceSession(models.scale(), options, providers=[CPU_PROVIDER])
    assert "Mul" in [operator for operator, _ in placement.nodes_on_cpu(made) or []]


def _needs_cuda() -> None:
    if CUDA_PROVIDER not in ort.get_available_providers():
        pytest.skip("no CUDA: the installed onnxruntime is built without it")
    if why := placement.why_not_cuda():
        pytest.skip(f"no CUDA: {why}")


@pytest.mark.cuda
def test_cuda_answers_as_the_cpu_does_for_every_batch_size(models):
    _needs_cuda()
    data = models.scale(3.0)
    cuda, cpu = (Session(data, device, SessionSettings()) for device in (Device("cuda"), Device("cpu")))
    for rows in (1, 2, 7, 32):
        x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        for got, wanted in zip(cuda.run({"x": x}, ["y", "z"]), cpu.run({"x": x}, ["y", "z"]), strict=True):
            np.testing.assert_array_equal(got, wanted)  # one multiplication: rounded once on both
