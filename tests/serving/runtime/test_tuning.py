"""How many threads a run has: measured by a clock of the test's own, remembered by model, processor and version."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from normfold.serving.catalog import load as loading
from normfold.serving.catalog.config import parse
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.repository import ModelFolder
from normfold.serving.runtime import tuning
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.tuning import Tuning, choose

FEEDS = {"x": np.zeros((1, 4), np.float32)}


class Machine:
    """A clock, and sessions whose runs move it."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.time = seconds, 0.0
        self.runs: list[int] = []

    def now(self) -> float:
        return self.time

    def make(self, threads: int):
        return Timed(self, threads)


class Timed:
    """A session of some threads."""

    def __init__(self, machine: Machine, threads: int) -> None:
        self.machine, self.threads = machine, threads

    def run(self, feeds, outputs):
        self.machine.runs.append(self.threads)
        self.machine.time += self.machine.seconds[self.threads]
        return []


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 0.010, 2: 0.009, 4: 0.008}, 1),  # shorter, but not worth the threads
        ({1: 0.010, 2: 0.006, 4: 0.004}, 4),
        ({1: 0.010, 2: 0.005, 4: 0.020}, 2),
        ({1: 0.010, 2: 0.020, 4: 0.030}, 1),
    ],
)
def test_more_threads_are_taken_where_a_run_gets_clearly_shorter(seconds, chosen):
    machine = Machine(seconds)
    session, measured = choose(machine.make, [1, 2, 4], FEEDS, ["y"], machine.now)
    assert (session.threads, measured) == (chosen, True)


def test_a_short_run_is_not_measured_on_more_threads():
    machine = Machine({1: 0.0005})
    session, measured = choose(machine.make, [1, 2], FEEDS, ["y"], machine.now)
    assert (session.threads, measured) == (1, False)
    assert machine.runs == [1]


def test_a_first_run_that_pays_for_allocations_does_not_count():
    machine = Machine({1: 0.005})
    times = iter([0.005, 0.0005])

    class Cold(Timed):
        def run(self, feeds, outputs):
            machine.seconds[1] = next(times)
            return super().run(feeds, outputs)

    _, measured = choose(lambda threads: Cold(machine, threads), [1, 2], FEEDS, ["y"], machine.now)
    assert not measured
    assert machine.runs == [1, 1]


def test_measuring_ends_in_time_but_not_before_each_was_run_once():
    machine = Machine({1: 2.0, 2: 1.0})
    session, _ = choose(machine.make, [1, 2], FEEDS, ["y"], machine.now)
    assert machine.runs == [1, 2]
    assert session.threads == 2
    machine = Machine({1: 0.1, 2: 0.1})
    choose(machine.make, [1, 2], FEEDS, ["y"], machine.now)
    assert machine.time <= tuning.MOST_SECONDS + 0.1


def test_counts_worth_a_measurement():
    assert [Tuning(None, cpus).candidates() for cpus in (1, 2, 3, 8)] == [[1], [1, 2], [1, 3], [1, 4, 8]]


def test_what_was_measured_is_remembered_for_the_same_model_processor_and_cpus(tmp_path, monkeypatch):
    here = Tuning(tmp_path / "threads", 4)
    assert here.find(b"model") is None
    here.keep(b"model", 4)
    assert here.find(b"model") == 4
    assert here.find(b"other") is None
    assert Tuning(tmp_path / "threads", 8).find(b"model") is None
    assert [file.suffix for file in (tmp_path / "threads").iterdir()] == [".json"]
    monkeypatch.setattr(tuning, "processor_name", lambda: "another")
    assert here.find(b"model") is None


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"intra_op_threads": 64}), "[" * 3000])
def test_a_damaged_memory_is_none(tmp_path, content):
    here = Tuning(tmp_path, 4)
    here.keep(b"model", 2)
    (file,) = tmp_path.iterdir()
    file.write_text(content, encoding="utf-8")
    assert here.find(b"model") is None


def test_a_pipe_is_not_waited_for(tmp_path):
    here = Tuning(tmp_path, 4)
    here.keep(b"model", 2)
    (file,) = tmp_path.iterdir()
    file.unlink()
    os.mkfifo(file)
    assert here.find(b"model") is None


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path):
    (tmp_path / "file").write_text("")
    Tuning(tmp_path / "file", 4).keep(b"model", 2)
    assert Tuning(tmp_path / "file", 4).find(b"model") is None
    Tuning(None, 4).keep(b"model", 2)
    assert Tuning(None, 4).find(b"model") is None


@pytest.fixture
def load(tmp_path, models):
    """Load a model of fixed shape with a tuning that remembers in the test's folder."""
    models.write(tmp_path / "m", models.scale())
    with ThreadPoolExecutor(1) as executor:

        def load(config: str = "", threads: int = 0):
            options = LoadOptions(Device("cpu"), 4, threads, tuning=Tuning(tmp_path / "threads", 4))
            return loading.load(ModelFolder("m", tmp_path / "m"), parse(config), 1, options, executor)

        yield load


@pytest.fixture
def two(monkeypatch):
    """Every measurement finds that two threads are best; the counts that were measured."""
    measured = []

    def choose(make, counts, feeds, outputs):
        measured.append(counts)
        return make(2), True

    monkeypatch.setattr(loading, "choose", choose)
    return measured


def test_a_model_is_measured_once_and_runs_as_it_measured_best(load, two):
    for _ in range(2):
        loaded = load()
        assert loaded.session.settings.intra_op_threads == 2
        assert loaded.config.parameters["intra_op_thread_count"].string_value == "2"
        assert loaded.config.instance_group[0].count == 2
        assert loaded.describe().endswith("on cpu, 2 threads a run")
    assert two == [[1, 2, 4]]


def test_whoever_says_how_many_threads_is_followed_and_nothing_is_measured(load, two):
    config = 'parameters { key: "intra_op_thread_count" value { string_value: "3" } }'
    assert load(config).session.settings.intra_op_threads == 3
    assert load(threads=4).session.settings.intra_op_threads == 4
    assert two == []
