"""Bound runs of any shape: exact under threads, on the CPU provider, which has the same bindings as CUDA."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from onnx import parser

from normfold.serving.errors import InvalidRequest
from normfold.serving.runtime import pinned, session
from normfold.serving.runtime.devices import CPU_PROVIDER, CUDA_PROVIDER, Device
from normfold.serving.runtime.session import Session
from normfold.serving.runtime.settings import SessionSettings
from normfold.serving.runtime.staging import ALIGNMENT, Staged

THREADS, CALLS = 8, 200
#: y = 2x, z = where x is not 0: its shape depends on the numbers.
OPEN = """<ir_version: 9, opset_import: ["": 18]> open (float[N,L] x) => (float[N,L] y, int64[2,M] z) {
    y = Add (x, x)
    z = NonZero (x)
}"""


def staged(data: bytes):
    """Bound runs of a model, and the sizes that were asked of memory."""
    sizes = []

    def memory(size):
        sizes.append(size)
        return np.full(size, 0xAB, np.uint8)

    return Staged(ort.InferenceSession(data, providers=[CPU_PROVIDER]), memory), sizes


@pytest.fixture
def scale(models):
    return staged(models.scale())


@pytest.fixture
def open_shapes():
    return staged(parser.parse_model(OPEN).SerializeToString())


def test_many_threads_get_the_answers_to_their_own_numbers_and_shapes(scale):
    runs, _ = scale

    def ask(thread):
        wrong = 0
        for call in range(CALLS):
            x = np.full((1 + call % 5, 4), thread * CALLS + call, np.float32)
            z, y = runs.run({"x": x}, ["z", "y"])
            wrong += not (np.array_equal(y, 2 * x) and np.array_equal(z, -x))
        return wrong

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(ask, range(THREADS))) == [0] * THREADS


def test_an_answer_is_not_changed_by_the_next_run(scale):
    runs, _ = scale
    for _ in range(2):  # the first run learns the shape of the answer, the second has it bound
        (first,) = runs.run({"x": np.ones((3, 4), np.float32)}, ["y"])
        runs.run({"x": np.zeros((3, 4), np.float32)}, ["y"])
        np.testing.assert_array_equal(first, np.full((3, 4), 2, np.float32))


def test_numbers_that_do_not_lie_in_a_row_are_taken_as_they_read(scale):
    x = np.arange(12, dtype=np.float32).reshape(4, 3).T
    np.testing.assert_array_equal(scale[0].run({"x": x}, ["y"])[0], 2 * x)


def test_memory_is_asked_for_only_where_a_request_is_larger_than_any_before(scale):
    runs, sizes = scale
    for rows in (1, 2, 4, 3, 4, 1):
        runs.run({"x": np.ones((rows, 4), np.float32)}, ["y", "z"])
    assert sizes == [ALIGNMENT, 2 * ALIGNMENT]
    runs.run({"x": np.ones((100, 4), np.float32)}, ["y"])
    assert sizes[2:] == [2048]


def test_an_answer_whose_shape_depends_on_the_numbers_is_right_every_time(open_shapes):
    runs, _ = open_shapes
    for x in (np.ones((2, 4)), np.eye(2, 4), np.zeros((2, 4)), np.ones((2, 4)), np.eye(3, 4)):
        y, z = runs.run({"x": x.astype(np.float32)}, ["y", "z"])
        np.testing.assert_array_equal(y, 2 * x)
        np.testing.assert_array_equal(z, np.stack(np.nonzero(x)))


def test_empty_inputs_have_empty_answers(open_shapes):
    for _ in range(2):
        y, z = open_shapes[0].run({"x": np.zeros((0, 4), np.float32)}, ["y", "z"])
        assert (y.shape, z.shape) == ((0, 4), (2, 0))


def test_a_request_that_fails_leaves_the_next_as_it_was(scale):
    runs, _ = scale
    x = np.ones((3, 4), np.float32)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="invalid dimensions"):
            runs.run({"x": np.ones((3, 5), np.float32)}, ["y"])
        np.testing.assert_array_equal(runs.run({"x": x}, ["y"])[0], 2 * x)


def tensor(name, shape, kind="tensor(float)"):
    return SimpleNamespace(name=name, shape=shape, type=kind)


def test_a_model_on_cuda_runs_through_pinned_memory_and_never_without_its_binding(
    fake, fake_session, models, monkeypatch
):
    real = ort.InferenceSession(models.scale(), providers=[CPU_PROVIDER])
    made = fake_session(options={CUDA_PROVIDER: {"device_id": "1"}})
    made.get_inputs = lambda: [tensor("x", ["N", 4])]
    made.get_outputs = lambda: [tensor(n, ["N", 4]) for n in "yz"]
    made.io_binding, made.run_with_iobinding = real.io_binding, real.run_with_iobinding  # and no `run`
    fake(made)
    sizes = []

    def memory(size):
        sizes.append(size)
        return np.empty(size, np.uint8)

    monkeypatch.setattr(session.pinned, "memory", memory)
    on_cuda = Session(models.scale(), Device("cuda", 1), SessionSettings())
    for rows in (1, 3, 3):
        x = np.full((rows, 4), rows, np.float32)
        np.testing.assert_array_equal(on_cuda.run({"x": x}, ["z"])[0], -x)
    assert sizes == [ALIGNMENT, ALIGNMENT]
    with pytest.raises(InvalidRequest, match=r"the model cannot take this input: .*invalid dimensions"):
        on_cuda.run({"x": np.ones((3, 5), np.float32)}, ["z"])


@pytest.mark.parametrize(("kind", "method"), [("tensor(string)", "run"), ("tensor(bfloat16)", "run_with_ort_values")])
def test_strings_and_bfloat16_are_not_bound(fake, fake_session, models, kind, method):
    made = fake_session(options={CUDA_PROVIDER: {"device_id": "1"}})
    made.get_inputs = lambda: [tensor("x", ["N", 4], kind)]
    fake(made)
    calls = []
    setattr(made, method, lambda outputs, feeds, options: calls.append(outputs) or [])
    assert Session(models.scale(), Device("cuda", 1), SessionSettings()).run({}, []) == []
    assert calls == [[]]  # where inputs are bound, onnxruntime is asked by run_with_iobinding


def test_a_model_that_answers_with_an_input_as_it_is_is_not_bound(fake, fake_session, models):
    made = fake_session(options={CUDA_PROVIDER: {"device_id": "1"}})
    made.get_inputs = lambda: [tensor("x", ["N", 4])]
    made.get_outputs = lambda: [tensor("x", ["N", 4])]
    made.run = lambda outputs, feeds, options: [feeds[name] for name in outputs]
    fake(made)
    x = np.ones((1, 4), np.float32)
    assert Session(models.scale(), Device("cuda", 1), SessionSettings()).run({"x": x}, ["x"])[0] is x


class Runtime:
    """CUDA's runtime, playing with ordinary memory; ``status`` is what it answers."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.given, self.asked, self.freed = {}, [], []

    def cudaHostAlloc(self, place, size, flags):  # noqa: N802
        self.asked.append((size.value, flags.value))
        if self.status == 0:
            held = np.zeros(size.value, np.uint8)
            place._obj.value = held.ctypes.data
            self.given[held.ctypes.data] = held
        return self.status

    def cudaFreeHost(self, place):  # noqa: N802
        self.freed.append(place.value)
        return 0


def test_pinned_memory_is_cudas_and_is_given_back_with_the_last_array_that_views_it(monkeypatch):
    runtime = Runtime()
    monkeypatch.setattr(pinned, "cuda_runtime", lambda: runtime)
    whole = pinned.memory(4096)
    assert runtime.asked == [(4096, pinned.PORTABLE)]
    assert whole.ctypes.data in runtime.given
    part = np.ndarray((4,), np.float32, whole.data, 64)
    part[:] = 1
    address = whole.ctypes.data
    del whole
    assert runtime.freed == []
    assert runtime.given[address][64:80].view(np.float32).tolist() == [1, 1, 1, 1]
    del part
    assert runtime.freed == [address]


def test_memory_that_cuda_does_not_pin_is_ordinary_and_the_log_has_its_number(monkeypatch, caplog):
    runtime = Runtime(status=2)
    monkeypatch.setattr(pinned, "cuda_runtime", lambda: runtime)
    assert len(pinned.memory(4096)) == 4096
    assert "4096 bytes cannot be page-locked: CUDA says 2" in caplog.text


def test_without_cuda_in_the_process_there_is_no_runtime_and_memory_is_ordinary(tmp_path, monkeypatch):
    monkeypatch.setattr(pinned, "MAPS", tmp_path / "maps")
    for content in ("", "7f00-7f01 r-xp 0 00:00 0 /usr/lib/libc.so.6\n"):
        (tmp_path / "maps").write_text(content)
        assert pinned.cuda_runtime.__wrapped__() is None
    monkeypatch.setattr(pinned, "cuda_runtime", lambda: None)
    assert pinned.memory(100).shape == (100,)


def test_the_runtime_is_the_library_that_the_process_has_loaded(tmp_path, monkeypatch):
    path = "/venv/nvidia/cu13/lib/libcudart.so.13"
    (tmp_path / "maps").write_text(f"7f00-7f01 r-xp 0 00:00 0 /lib/libc.so.6\n7f02-7f03 r-xp 0 00:00 7   {path}\n")
    monkeypatch.setattr(pinned, "MAPS", tmp_path / "maps")
    monkeypatch.setattr(pinned.ctypes, "CDLL", lambda name: name)
    assert pinned.cuda_runtime.__wrapped__() == path
