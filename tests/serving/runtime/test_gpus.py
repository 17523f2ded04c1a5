"""Several GPUs: a session on each, as many runs at once as its count, and a run goes where one is free."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from normfold.serving.catalog import config
from normfold.serving.catalog import load as loading
from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import ConfigError, DeviceUnavailable
from normfold.serving.runtime import gpus, session
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.gpus import Sessions
from normfold.serving.runtime.tuning import Tuning
from normfold.serving.scheduling.inline import TRIED_RUNS

SECONDS = 30
#: More requests at once than any model here has instances.
REQUESTS = 6
MODELS_IO = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 4 }
"""


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", {3: 1}),
        ("instance_group { count: 2 }", {3: 2}),
        ("instance_group { gpus: [0, 1] }", {0: 1, 1: 1}),
        ("instance_group { count: 2 gpus: [1, 0] } instance_group { gpus: 1 }", {1: 3, 0: 2}),
    ],
)
def test_the_count_is_for_each_gpu_that_a_group_names(text, counts):
    assert gpus.instances(config.parse(text).instance_group, 3) == counts


class Held:
    """A session whose runs last until they are let go."""

    def __init__(self):
        self.running, self.go, self.lock = 0, threading.Event(), threading.Lock()

    def run(self, feeds, outputs, stop=None):
        with self.lock:
            self.running += 1
        assert self.go.wait(SECONDS)
        with self.lock:
            self.running -= 1
        return [feeds["x"]]


def test_runs_fill_the_instances_of_every_gpu_before_any_has_one_too_many():
    small, large = Held(), Held()
    sessions = Sessions([(small, 1), (large, 3)])
    with ThreadPoolExecutor(4) as threads:
        for _ in range(2):  # the second time shows that every run left its instance free
            small.go.clear(), large.go.clear()
            runs = [threads.submit(sessions.run, {"x": n}, ["y"]) for n in range(4)]
            ends = threading.Event()
            for _ in range(SECONDS * 100):
                if small.running + large.running == 4:
                    break
                ends.wait(0.01)
            assert (small.running, large.running) == (1, 3)
            small.go.set(), large.go.set()
            assert [run.result(SECONDS) for run in runs] == [[0], [1], [2], [3]]


def test_a_run_that_fails_leaves_its_instance_free():
    class Failing:
        def run(self, feeds, outputs, stop=None):
            raise ValueError("no")

    sessions = Sessions([(Failing(), 1), (Held(), 1)])
    for _ in range(3):  # the first of two that are equally free is taken
        with pytest.raises(ValueError, match="no"):
            sessions.run({}, [])


@pytest.fixture
def load(monkeypatch, models, tmp_path):
    """Loads a model where sessions run on the CPU and say that they are on the GPU they were asked for."""
    made, there = [], (0, 1)

    class Claiming(session.Session):
        def __init__(self, data, device, settings):
            if device.index not in there:
                raise DeviceUnavailable(f"device {device} was asked for, but it failed: CUDA failure 101")
            super().__init__(data, Device("cpu"), settings)
            self.device = str(device) if device.kind == "cuda" else self.device
            self.ran, self.running, self.go = 0, 0, threading.Event()
            self.go.set()
            made.append(self)

        def run(self, feeds, outputs, stop=None):
            self.ran, self.running = self.ran + 1, self.running + 1
            assert self.go.wait(SECONDS)
            self.running -= 1
            return super().run(feeds, outputs, stop=stop)

    monkeypatch.setattr(loading, "Session", Claiming)
    executor = ThreadPoolExecutor(REQUESTS)

    def load(text, device="cuda", index=0, **options):
        text = MODELS_IO + text
        models.write(tmp_path / "m", models.scale(), config=text)
        written = config.parse(text)
        assert config.check(written, "m") == []
        folder = Repository(tmp_path).models()["m"]
        options = {"inline_seconds": 0.0} | options  # all on threads
        chosen = loading.LoadOptions(Device(device, index), 4, **options)
        return loading.load(folder, written, 1, chosen, executor), made

    yield load
    executor.shutdown()


def at_once(loaded, made):
    """How many runs the model begins while none of them ends."""

    async def scenario():
        for one in made:
            one.go.clear()
        x = {"x": np.ones((1, 4), np.float32)}
        tasks = [asyncio.create_task(loaded.infer(x, 1, ["y"], 0, 0)) for _ in range(REQUESTS)]
        while loaded.scheduler.free or not loaded.scheduler.waiting:  # other work on the loop may have its turn first
            await asyncio.sleep(0)
        expected = REQUESTS - loaded.scheduler.waiting
        while sum(one.running for one in made) < expected:
            await asyncio.sleep(0.001)
        for one in made:
            one.go.set()
        await asyncio.gather(*tasks)
        return expected

    return asyncio.run(asyncio.wait_for(scenario(), SECONDS))


def test_a_model_has_a_session_on_each_gpu_all_of_them_warm_and_says_so(load):
    loaded, made = load("instance_group { count: 2 gpus: [1, 0] kind: KIND_GPU }")
    assert [one.device for one in made] == ["cuda:1", "cuda:0"] == loaded.devices
    assert all(one.ran > 0 for one in made)
    (group,) = loaded.config.instance_group
    assert (list(group.gpus), group.count) == ([1, 0], 2)
    assert at_once(loaded, made) == 4
    assert loaded.describe().endswith("on cuda:1, cuda:0")
    x = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(loaded.run({"x": x}, ["y"])[0], 2 * x)


def test_a_model_that_names_no_gpu_has_one_session_on_the_servers(load):
    loaded, made = load("", index=1)
    assert [one.device for one in made] == ["cuda:1"]
    assert (list(loaded.config.instance_group[0].gpus), at_once(loaded, made)) == ([1], 1)


def test_preserved_ordering_is_one_run_at_a_time_on_all_gpus(load):
    loaded, made = load("dynamic_batching { preserve_ordering: true } instance_group { gpus: [0, 1] }")
    assert at_once(loaded, made) == 1


def test_a_gpu_that_is_not_there_fails_the_model_that_names_it_alone(load):
    for index in ("7", "[0, 7]"):
        with pytest.raises(ConfigError, match=r"instance_group\.gpus has 7, which cannot be used: .*CUDA failure 101"):
            load(f"instance_group {{ gpus: {index} }}")
    with pytest.raises(DeviceUnavailable, match="CUDA failure 101"):
        load("", index=7)


def test_auto_on_the_cpu_has_one_session_whatever_gpus_are_named(load):
    loaded, made = load("instance_group { gpus: [0, 1] }", device="auto", inline_seconds=0.0)
    assert [one.device for one in made] == ["cpu"]
    assert list(loaded.config.instance_group[0].gpus) == []
    assert at_once(loaded, made) == 1


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_threads_are_not_measured_where_a_gpu_may_run_the_model(load, tmp_path, device):
    class Watched(Tuning):
        def find(self, data):
            raise AssertionError("asked for a thread count")

    _, made = load("", device=device, tuning=Watched(tmp_path, 4))
    assert len(made) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("instance_group { gpus: [1, 1] }", r"different numbers from 0, got \[1, 1\]"),
        ("instance_group { gpus: -1 }", r"different numbers from 0, got \[-1\]"),
        ("instance_group { gpus: 1 kind: KIND_CPU }", r"KIND_CPU, but gpus \[1\]"),
    ],
)
def test_gpus_that_make_no_sense_are_a_config_error(text, words):
    with pytest.raises(ConfigError, match=words):
        config.check(config.parse(text), "m")


@pytest.mark.parametrize(("device", "stays"), [("cpu", True), ("cuda", False)])
def test_short_runs_on_a_gpu_never_stay_on_the_event_loop(load, device, stays):
    loaded, _ = load("", device, inline_seconds=1.0)
    run_time = loaded.scheduler.times.of({"x": np.ones((3, 4), np.float32)})
    for _ in range(TRIED_RUNS):
        run_time.note(1)
    assert run_time.inline is stays


@pytest.mark.cuda
def test_two_gpus_answer_as_the_cpu_does(models, tmp_path, cuda_gpus):
    if cuda_gpus < 2:
        pytest.skip(f"two GPUs are needed, {cuda_gpus} found")
    models.write(tmp_path / "m", models.scale(3.0), config=MODELS_IO)
    text = MODELS_IO + "instance_group { gpus: [0, 1] }"
    with ThreadPoolExecutor(2) as threads:
        options = loading.LoadOptions(Device("cuda"), 2)
        loaded = loading.load(Repository(tmp_path).models()["m"], config.parse(text), 1, options, threads)
        for rows in range(1, 9):
            x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
            np.testing.assert_array_equal(loaded.run({"x": x}, ["y"])[0], np.float32(3) * x)
    assert loaded.devices == ["cuda:0", "cuda:1"]
