"""Tensors that stay on the device: exact under threads, on the CPU provider, which has the same bindings as CUDA."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from normfold.serving.catalog import config
from normfold.serving.catalog.load import LoadOptions, load
from normfold.serving.catalog.repository import SentFolder
from normfold.serving.errors import ConfigError, InvalidRequest
from normfold.serving.runtime import session
from normfold.serving.runtime.bindings import Resident
from normfold.serving.runtime.cuda_options import GRAPH
from normfold.serving.runtime.devices import CPU_PROVIDER, CUDA_PROVIDER, Device
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings

THREADS, CALLS = 8, 200
FLOATS = np.dtype(np.float32)
X, Y, Z = (("x", FLOATS, (3, 4)), ("y", FLOATS, (3, 4)), ("z", FLOATS, (3, 4)))
GRAPHS = SessionSettings(cuda_options=((GRAPH, "1"),))


@pytest.fixture
def resident(models):
    made = ort.InferenceSession(models.scale(), providers=[CPU_PROVIDER])
    return Resident(made, [X], [Y, Z], "cpu")


def test_many_threads_get_the_answers_to_their_own_numbers(resident):
    def ask(thread):
        wrong = 0
        for call in range(CALLS):
            x = np.full((3, 4), thread * CALLS + call, np.float32)
            z, y = resident.run({"x": x}, ["z", "y"])
            wrong += not (np.array_equal(y, 2 * x) and np.array_equal(z, -x))
        return wrong

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(ask, range(THREADS))) == [0] * THREADS


def test_an_answer_is_not_changed_by_the_next_run(resident):
    (first,) = resident.run({"x": np.ones((3, 4), np.float32)}, ["y"])
    resident.run({"x": np.zeros((3, 4), np.float32)}, ["y"])
    np.testing.assert_array_equal(first, np.full((3, 4), 2, np.float32))


def test_numbers_that_do_not_lie_in_a_row_are_taken_as_they_read(resident):
    x = np.arange(12, dtype=np.float32).reshape(4, 3).T
    np.testing.assert_array_equal(resident.run({"x": x}, ["y"])[0], 2 * x)


@pytest.mark.parametrize("feeds", [{}, {"x": np.ones((2, 4), np.float32)}, {"x": np.ones(12, np.float32)}])
def test_other_shapes_are_refused(resident, feeds):
    with pytest.raises(InvalidRequest, match=r"'x' must have the shape \[3, 4\], got"):
        resident.run(feeds, ["y"])


def tensor(name, shape, kind="tensor(float)"):
    return SimpleNamespace(name=name, shape=shape, type=kind)


def claims_cuda(fake_session, inputs, outputs, run=None):
    """A session that says it is on CUDA, with these tensors; ``run`` is a real one that does its runs."""
    made = fake_session(options={CUDA_PROVIDER: {"device_id": "1"}})
    made.get_inputs, made.get_outputs = (lambda: inputs), (lambda: outputs)
    if run is not None:
        made.io_binding, made.run_with_iobinding = run.io_binding, run.run_with_iobinding
    return made


def test_a_graph_is_asked_of_cuda_and_runs_on_tensors_that_stay(fake, fake_session, models, monkeypatch):
    real = ort.InferenceSession(models.scale(), providers=[CPU_PROVIDER])
    asked = fake(claims_cuda(fake_session, [tensor("x", [3, 4])], [tensor(n, [3, 4]) for n in "yz"], real))
    placed = []

    def on_the_cpu(made, inputs, outputs, device, index):
        placed.append((inputs, outputs, device, index))
        return Resident(made, inputs, outputs, "cpu")

    monkeypatch.setattr(session, "Resident", on_the_cpu)
    made = Session(models.scale(), Device("cuda", 1), GRAPHS)
    assert asked[0][1][0][1][GRAPH] == "1"
    assert placed == [([X], [Y, Z], "cuda", 1)]
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(made.run({"x": x}, ["z"])[0], -x)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (tensor("x", ["N", 4]), r"needs fixed shapes in the model file, but 'x' has \[-1, 4\]"),
        (tensor("x", [3], "tensor(string)"), "cannot take 'x', which is BYTES"),
        (tensor("x", [3], "tensor(bfloat16)"), "cannot take 'x', which is BF16"),
        (tensor("y", [3, 4]), "cannot answer with its input 'y' as it is"),
    ],
)
def test_a_graph_of_open_shapes_or_of_strings_is_a_config_error(fake, fake_session, models, wrong, words):
    fake(claims_cuda(fake_session, [wrong], [tensor("y", [3, 4])]))
    with pytest.raises(ConfigError, match=words):
        Session(models.scale(), Device("cuda", 1), GRAPHS)


def test_auto_on_the_cpu_has_no_graph_and_takes_any_shape(models):
    if CUDA_PROVIDER in ort.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    x = np.ones((5, 4), np.float32)
    np.testing.assert_array_equal(Session(models.scale(), Device("auto"), GRAPHS).run({"x": x}, ["z"])[0], -x)


def options_of(text):
    written = config.parse(text)
    assert config.check(written, "m") == []
    return dict(config.settings(written, SessionSettings()).cuda_options)


def test_config_pbtxt_asks_for_graphs_as_triton_has_it_or_by_the_providers_name():
    parameter = 'parameters { key: "enable_cuda_graph" value { string_value: "%s" } } '
    assert options_of("optimization { cuda { graphs: true } }") == options_of(parameter % 1) == {GRAPH: "1"}
    with pytest.raises(ConfigError, match="graphs is true, but parameter 'enable_cuda_graph' is 0"):
        options_of(parameter % 0 + "optimization { cuda { graphs: true } }")


@pytest.mark.parametrize(
    ("device", "words"), [("cpu", "needs a GPU"), ("tensorrt", "cannot be used together with TensorRT")]
)
def test_graphs_where_they_cannot_be_are_a_config_error(models, device, words):
    folder = SentFolder("m", {"1/model.onnx": models.scale()})
    by_parameter = 'parameters { key: "enable_cuda_graph" value { string_value: "1" } }'
    with ThreadPoolExecutor(1) as executor:
        for text in ("optimization { cuda { graphs: true } }", by_parameter):
            with pytest.raises(ConfigError, match=words):
                load(folder, config.parse(text), 1, LoadOptions(Device(device), 1), executor)
