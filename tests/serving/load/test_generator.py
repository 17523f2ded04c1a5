"""Both loops on a clock that only the test moves: latencies and counts worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from normfold.serving.load import generator
from normfold.serving.load.generator import Load, Slice, merged, run
from normfold.serving.load.histogram import Histogram
from normfold.serving.load.rounds import Target, measure, ratio

MS = 1_000_000


class Clock:
    def __init__(self):
        self.ns = 0

    def perf_counter_ns(self):
        return self.ns

    def perf_counter(self):
        return self.ns / 1e9


class Server:
    """Answers one call after the other, each in ``service`` ms; between ``stop`` and ``go`` ms it does nothing."""

    def __init__(self, clock, service=1.0, stop=0.0, go=0.0, status="OK"):
        self.clock, self.service, self.stop, self.go, self.status = clock, service * MS, stop * MS, go * MS, status
        self.free, self.due = 0, []

    def send(self, number):
        begin = max(self.clock.ns, self.free)
        if self.stop <= begin < self.go:
            begin = self.go
        self.free = begin + self.service
        self.due.append((self.free, number))

    def wait(self, seconds):
        until = self.clock.ns + max(int(seconds * 1e9), 1)
        if self.due and self.due[0][0] <= until:
            self.clock.ns = max(self.clock.ns, int(self.due[0][0]))
            return [(self.due.pop(0)[1], self.status)]
        self.clock.ns = until
        return []

    def close(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(generator, "time", made)
    return made


@pytest.mark.parametrize("in_flight", [1, 4, 16])
def test_a_closed_loop_waits_for_its_turn_behind_the_others(clock, in_flight):
    found = run(Server(clock), Load(in_flight), 1.0)
    assert found.answered == pytest.approx(1000, abs=1)
    assert found.per_second == pytest.approx(1000, rel=0.01)
    assert found.milliseconds(50) == pytest.approx(in_flight, rel=0.01)
    assert not found.errors


def test_an_open_loop_below_capacity_sees_only_the_service_time(clock):
    found = run(Server(clock), Load(rate=100), 2.0)
    assert found.answered == 200
    assert found.milliseconds(99.9) == pytest.approx(1, rel=0.01)


def test_an_open_loop_sends_one_call_at_least(clock):
    found = run(Server(clock), Load(rate=0.5), 1.0)
    assert found.answered == 1


def test_a_stop_is_charged_to_every_call_that_should_have_left_meanwhile(clock):
    # 100 calls a second; from 1.15 s to 2.15 s nothing is answered. A closed loop of one would see a single slow call.
    found = run(Server(clock, stop=1150, go=2150), Load(rate=100), 4.0)
    assert found.answered == 400
    slow = sum(count for top, count in found.latencies.buckets() if top > 10 * MS)
    assert slow == pytest.approx(100, abs=12)  # those of the stop, and the few that queue behind them
    assert found.milliseconds(100) == pytest.approx(1000, rel=0.02)
    closed = run(Server(clock, stop=clock.ns / MS + 1150, go=clock.ns / MS + 2150), Load(1), 4.0)
    assert sum(count for top, count in closed.latencies.buckets() if top > 10 * MS) == 1


def test_calls_that_are_never_answered_are_charged_with_the_wait_for_them(clock):
    found = run(Server(clock, stop=1000, go=1e9), Load(rate=100), 2.0)
    assert found.errors["unanswered"] > 50
    assert found.answered + found.errors["unanswered"] == 200
    assert found.milliseconds(99) > generator.DRAIN_SECONDS * 1e3


@pytest.mark.parametrize("load", [Load(in_flight=2), Load(rate=100.0)])
def test_an_answer_to_a_call_that_was_given_up_is_not_counted(clock, load):
    lost = Server(clock, stop=50, go=60_000)
    run(lost, load, 0.5)
    lost.free = clock.ns = 60_000 * MS  # all answers of the first slice come in the second
    found = run(lost, load, 0.5)
    assert found.latencies.percentile(100) < 1_000 * MS
    assert not found.errors


def test_failures_are_counted_by_status_and_not_timed(clock):
    found = run(Server(clock, status="UNAVAILABLE"), Load(1), 1.0)
    assert found.answered == 0
    assert found.latencies.count == 0
    assert set(found.errors) == {"UNAVAILABLE"}
    assert found.per_second == 0


def test_the_servers_cpu_time_is_that_of_the_measured_part(clock):
    found = run(Server(clock), Load(1), 1.0, lambda: clock.ns / 1e9 / 2)  # a server that uses half a CPU
    assert found.cpu_us == pytest.approx(500, rel=0.01)
    assert run(Server(clock), Load(1), 1.0).cpu_us is None


def test_slices_add_up_and_an_unknown_cpu_time_stays_unknown():
    one = Slice(Histogram([1, 2]), 2, Counter(NOT_FOUND=1), 1.0, 0.5)
    total = merged([one, one])
    assert (total.answered, total.errors, total.seconds, total.cpu_seconds) == (4, Counter(NOT_FOUND=2), 2.0, 1.0)
    assert merged([one, Slice(), one]).cpu_seconds is None


def test_rounds_begin_with_another_server_each_and_ratios_are_taken_within_them(clock):
    fast, slow = Target("fast", Server(clock, 1)), Target("slow", Server(clock, 4))
    said = list(measure([fast, slow], [Load(1), Load(2)], 3.0, 3))
    assert [text.split(",")[0] for text in said] == ["fast", "slow"] * 2 + ["slow", "fast"] * 2 + ["fast", "slow"] * 2
    found = ratio(slow, fast, Load(2), lambda part: part.milliseconds(50))
    assert found is not None
    assert found.median == pytest.approx(4, rel=0.02)
    assert ratio(slow, fast, Load(2), lambda part: part.cpu_us) is None


def test_there_is_no_ratio_to_a_server_that_answered_nothing():
    load = Load(in_flight=1)
    one, none = (
        Target(name, None, slices={load: [Slice(answered=n, seconds=1.0)]}) for name, n in (("a", 5), ("b", 0))
    )
    assert ratio(one, none, load, lambda found: found.per_second) is None
    assert ratio(none, one, load, lambda found: found.per_second).median == 0
