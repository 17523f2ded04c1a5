"""Waiting, batching, priorities and timeouts, with a model that runs when the test says so."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import Mock

import grpc
import numpy as np
import pytest

from normfold.serving.errors import InvalidRequest, Unavailable
from normfold.serving.rpc.caller import CALLER
from normfold.serving.scheduling.admission import FEW
from normfold.serving.scheduling.batching import BatchPolicy, QueuePolicy, read_policy
from normfold.serving.scheduling.executing import stacked
from normfold.serving.scheduling.scheduler import Scheduler
from normfold.serving.scheduling.statistics import Statistics


class Gate:
    """A model y = 2x that waits at a gate and notes what it was run with."""

    def __init__(self, is_open: bool = True) -> None:
        self.open = threading.Event()
        if is_open:
            self.open.set()
        self.started = threading.Semaphore(0)
        self.runs: list[list[float]] = []
        self.poison: float | None = None

    def __call__(self, feeds, outputs):
        self.started.release()
        self.open.wait(20)
        x = feeds["x"]
        self.runs.append(x[:, 0].tolist())
        if self.poison is not None and (x == self.poison).any():
            raise InvalidRequest("poison")
        return [2 * x for _ in outputs]


def play(scenario, policy: BatchPolicy, gate: Gate, instances: int = 1):
    """Run the coroutine ``scenario(scheduler, submit)``; the statistics of the run."""
    statistics = Statistics()

    async def run():
        with ThreadPoolExecutor(4) as executor:
            scheduler = Scheduler(gate, policy, instances, executor, statistics)

            def submit(
                value: float, rows: int = 1, width: int = 3, priority: int = 0, timeout_us: int = 0, outputs="y"
            ):
                feeds = {"x": np.full((rows, width), value, np.float32)}
                return asyncio.ensure_future(scheduler.submit(feeds, rows, [*outputs], priority, timeout_us))

            try:
                return await asyncio.wait_for(scenario(submit), 20)
            finally:
                gate.open.set()

    return asyncio.run(run()), statistics


async def started(gate: Gate) -> None:
    """Wait until the gate holds a run."""
    while not gate.started.acquire(blocking=False):
        await asyncio.sleep(0.001)


async def settle() -> None:
    """Let everything that was submitted reach the queue."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_waits_runs_together_and_each_gets_its_rows():
    gate = Gate(is_open=False)

    async def scenario(submit):
        first = submit(0)
        await started(gate)
        waiting = [submit(value, rows=value) for value in (1, 2, 3)]
        await settle()
        gate.open.set()
        await first
        return await asyncio.gather(*waiting)

    answers, statistics = play(scenario, BatchPolicy(max_rows=8), gate)
    assert gate.runs == [[0], [1, 2, 2, 3, 3, 3]]
    for value, ((y,), timing) in zip((1, 2, 3), answers, strict=True):
        np.testing.assert_array_equal(y, np.full((value, 3), 2 * value))
        assert timing.queue > 0
    assert {rows: b.infer.count for rows, b in statistics.batches.items()} == {1: 1, 6: 1}


def test_a_batch_never_exceeds_the_largest():
    gate = Gate(is_open=False)

    async def scenario(submit):
        calls = [submit(0)]
        await started(gate)
        calls += [submit(value, rows=2) for value in (1, 2, 3)]
        await settle()
        gate.open.set()
        await asyncio.gather(*calls)

    play(scenario, BatchPolicy(max_rows=4), gate)
    assert gate.runs == [[0], [1, 1, 2, 2], [3, 3]]


@pytest.mark.parametrize("delay_us", [0, 3_600_000_000])
def test_where_the_order_is_preserved_no_request_overtakes_one_of_another_shape(delay_us):
    gate = Gate(is_open=False)

    async def scenario(submit):
        calls = [submit(0, rows=4)]
        await started(gate)
        calls += [submit(value, width=width) for value, width in ((1, 3), (2, 3), (3, 5), (4, 3))]
        calls.append(submit(5, rows=4))
        await settle()
        gate.open.set()
        await asyncio.gather(*calls)

    play(scenario, BatchPolicy(max_rows=4, max_delay_us=delay_us, in_order=True), gate)
    assert gate.runs == [[0] * 4, [1, 2], [3], [4], [5] * 4]


def test_only_equal_shapes_run_together_and_nothing_overtakes_its_own_kind():
    gate = Gate(is_open=False)

    async def scenario(submit):
        calls = [submit(0)]
        await started(gate)
        calls += [submit(1, width=3), submit(2, width=5), submit(3, width=3), submit(4, width=5)]
        await settle()
        gate.open.set()
        await asyncio.gather(*calls)

    play(scenario, BatchPolicy(max_rows=8), gate)
    assert gate.runs == [[0], [1, 3], [2, 4]]


def test_without_batching_every_request_runs_alone():
    gate = Gate(is_open=False)

    async def scenario(submit):
        calls = [submit(0)]
        await started(gate)
        calls += [submit(1), submit(2)]
        await settle()
        gate.open.set()
        await asyncio.gather(*calls)

    play(scenario, BatchPolicy(), gate)
    assert gate.runs == [[0], [1], [2]]


def test_as_many_runs_at_a_time_as_there_are_instances():
    gate = Gate(is_open=False)

    async def scenario(submit):
        calls = [submit(value) for value in range(3)]
        await started(gate)
        await started(gate)
        await asyncio.sleep(0.02)
        assert not gate.started.acquire(blocking=False)
        gate.open.set()
        await asyncio.gather(*calls)

    play(scenario, BatchPolicy(), gate, instances=2)


def test_what_waits_is_run_while_the_event_loop_is_busy():
    gate = Gate(is_open=False)

    async def scenario(submit):
        calls = [submit(0)]
        await started(gate)
        calls += [submit(value) for value in (1, 2, 3)]
        await settle()
        gate.open.set()
        until = time.monotonic() + 20
        while len(gate.runs) < 4 and time.monotonic() < until:
            time.sleep(0.001)  # the loop does nothing else meanwhile
        ran = list(gate.runs)
        await asyncio.gather(*calls)
        return ran

    ran, _ = play(scenario, BatchPolicy(), gate)
    assert ran == [[0], [1], [2], [3]]


def test_a_request_that_is_cancelled_while_its_run_goes_on_is_not_taken_from_the_queue_twice():
    gate = Gate(is_open=False)

    async def scenario(submit):
        first = submit(0)
        await started(gate)
        first.cancel()
        second = submit(1)
        await settle()
        gate.open.set()
        return await second

    ((y,), _), _ = play(scenario, BatchPolicy(max_rows=4), gate)
    assert y[0, 0] == 2


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_rows_are_stacked_as_numpy_stacks_them(dtype, shape):
    parts = [np.random.default_rng(rows).integers(0, 2, (rows, *shape)).astype(dtype) for rows in (1, 2, 1)]
    found = stacked(parts)
    assert found.dtype == parts[0].dtype
    np.testing.assert_array_equal(found, np.concatenate(parts))


def test_rows_that_are_no_plain_block_of_memory_are_stacked_too():
    words = np.array([["a", "bc"]], dtype=object)
    np.testing.assert_array_equal(stacked([words, words]), np.concatenate([words, words]))
    strided = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    np.testing.assert_array_equal(stacked([strided, strided]), np.concatenate([strided, strided]))


def test_a_batch_that_fails_is_run_one_by_one_so_that_only_the_guilty_fails():
    gate = Gate(is_open=False)
    gate.poison = 2

    async def scenario(submit):
        first = submit(0)
        await started(gate)
        calls = [submit(value) for value in (1, 2, 3)]
        await settle()
        gate.open.set()
        await first
        return await asyncio.gather(*calls, return_exceptions=True)

    (one, two, three), statistics = play(scenario, BatchPolicy(max_rows=8), gate)
    assert one[0][0][0, 0] == 2
    assert isinstance(two, InvalidRequest)
    assert three[0][0][0, 0] == 6
    assert statistics.executions == 3


class TwoRows(Gate):
    """A model whose answer has two rows, whatever it is asked."""

    def __call__(self, feeds, outputs):
        return [np.array([[1.0], [2.0]]) for _ in super().__call__(feeds, outputs)]


def test_requests_run_alone_once_an_output_was_seen_without_the_rows_of_its_inputs():
    """Two requests of one row each would share out an output that has two rows for each of them."""
    gate = TwoRows(is_open=False)

    async def scenario(submit):
        calls = [submit(0)]
        await started(gate)
        calls += [submit(value) for value in (1, 2)]
        await settle()
        gate.open.set()
        return await asyncio.gather(*calls)

    answers, _ = play(scenario, BatchPolicy(max_rows=8), gate)
    assert gate.runs == [[0], [1], [2]]
    assert [y.tolist() for (y,), _ in answers] == [[[1], [2]]] * 3


def test_a_batch_without_its_rows_is_run_one_by_one_and_the_next_ones_are_no_batch():
    gate = TwoRows()

    async def scenario(submit):
        for _ in range(2):
            await asyncio.gather(submit(1, rows=2), submit(2, rows=2))

    play(scenario, BatchPolicy(max_rows=4, max_delay_us=3_600_000_000), gate)
    assert gate.runs == [[1, 1, 2, 2], [1, 1], [2, 2], [1, 1], [2, 2]]


class OddZ(Gate):
    """A model whose output z has two rows, whatever it is asked."""

    def __call__(self, feeds, outputs):
        return [
            np.zeros((2, 1)) if n == "z" else y for n, y in zip(outputs, super().__call__(feeds, outputs), strict=True)
        ]


@pytest.mark.parametrize("delay_us", [0, 3_600_000_000])
def test_only_requests_for_an_output_without_the_rows_of_the_inputs_run_alone(delay_us):
    """One request for such an output, which nobody asked for again, ended all batches."""
    gate, mark = OddZ(is_open=delay_us > 0), Mock()

    async def run():
        with ThreadPoolExecutor(4) as executor:
            policy = BatchPolicy(max_rows=4, max_delay_us=delay_us)
            scheduler = Scheduler(gate, policy, 1, executor, Statistics(), on_alone=mark)

            def submit(value, outputs):
                feeds = {"x": np.full((1, 3), value, np.float32)}
                return asyncio.ensure_future(scheduler.submit(feeds, 1, [*outputs], 0, 0))

            scheduler.run_alone({"z"})
            scheduler.run_alone({"z"})
            calls = [submit(0, "yz")]
            await started(gate)
            calls += [submit(1, "y"), submit(2, "zy"), submit(3, "y"), submit(4, "y"), submit(5, "z"), submit(6, "y")]
            await settle()
            gate.open.set()
            await asyncio.wait_for(asyncio.gather(*calls), 20)

    asyncio.run(run())
    assert sorted(gate.runs) == [[0], [1, 3, 4, 6], [2], [5]]
    mark.assert_called_once_with(["z"])


@pytest.mark.parametrize(("after", "few"), [("yz", FEW), ("y", 2 * 256)])
def test_admission_counts_full_batches_only_while_requests_run_together(after, few):
    """The batch that found the output out counted as one that ran together, and nothing was learned of it."""

    async def run():
        with ThreadPoolExecutor(4) as executor:
            policy = BatchPolicy(max_rows=256, max_delay_us=3_600_000_000)
            scheduler = Scheduler(OddZ(), policy, 1, executor, Statistics())
            for outputs in ("yz", after):
                feeds = {"x": np.zeros((128, 3), np.float32)}
                await asyncio.gather(*[scheduler.submit(feeds, 128, [*outputs], 0, 0) for _ in range(2)])
            return scheduler.load.few

    assert asyncio.run(asyncio.wait_for(run(), 20)) == few


def test_an_output_that_nobody_asks_for_ends_no_batch():
    gate = OddZ()

    async def scenario(submit):
        await asyncio.gather(*[submit(value, outputs="yz") for value in (1, 2, 3, 4)])
        await asyncio.gather(*[submit(value) for value in (5, 6, 7, 8)])

    play(scenario, BatchPolicy(max_rows=4, max_delay_us=3_600_000_000), gate)
    assert gate.runs[-1] == [5, 6, 7, 8]
    assert sorted(gate.runs[:-1]) == [[1], [1, 2, 3, 4], [2], [3], [4]]


def test_a_full_queue_refuses():
    gate = Gate(is_open=False)

    async def scenario(submit):
        first = submit(0)
        await started(gate)
        waiting = [submit(1), submit(2)]
        await settle()
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            await submit(3)
        gate.open.set()
        await asyncio.gather(first, *waiting)
        await submit(4)

    play(scenario, BatchPolicy(max_rows=1, default=QueuePolicy(max_size=2)), gate)


def test_a_request_that_makes_place_for_another_connection_is_refused_at_once():
    gate = Gate(is_open=False)

    async def scenario(submit):
        def submit_on(connection: str, value: float):
            CALLER.set(SimpleNamespace(connection=connection))
            return submit(value)

        first = submit_on("a", 0)
        await started(gate)
        waiting = [submit_on("a", 1), submit_on("a", 2), submit_on("b", 3)]
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            await waiting[1]
        gate.open.set()
        await asyncio.gather(first, waiting[0], waiting[2])

    play(scenario, BatchPolicy(max_rows=1, default=QueuePolicy(max_size=2)), gate)
    assert gate.runs == [[0], [1], [3]]


def test_only_runs_under_way_are_stopped():
    gate, stopped = Gate(is_open=False), []

    async def run():
        with ThreadPoolExecutor(1) as executor:
            scheduler = Scheduler(
                gate, BatchPolicy(), 1, executor, Statistics(), stoppable=lambda: (gate, lambda: stopped.append(gate))
            )
            feeds = {"x": np.zeros((1, 3), np.float32)}
            both = [asyncio.ensure_future(scheduler.submit(feeds, 1, ["y"], 0, 0)) for _ in range(2)]
            await started(gate)
            scheduler.stop()
            assert len(stopped) == 1
            gate.open.set()
            await asyncio.gather(*both)
            scheduler.stop()
            assert len(stopped) == 1

    asyncio.run(asyncio.wait_for(run(), 20))


def test_the_waits_before_runs_are_learned():
    gate = Gate(is_open=False)

    async def run():
        with ThreadPoolExecutor(1) as executor:
            scheduler = Scheduler(gate, BatchPolicy(), 1, executor, Statistics())
            scheduler.load.waited = learn = Mock()
            scheduler.load.under_way.add(None, 1)
            feeds = {"x": np.zeros((1, 3), np.float32)}
            both = [asyncio.ensure_future(scheduler.submit(feeds, 1, ["y"], 0, 0)) for _ in range(2)]
            await started(gate)
            await asyncio.sleep(0.02)
            gate.open.set()
            await asyncio.gather(*both)
            assert [call.args[1] for call in learn.call_args_list] == [0, 0]
            assert learn.call_args.args[0] >= 0.02

    asyncio.run(asyncio.wait_for(run(), 20))


def test_requests_that_give_up_lengthen_the_expected_wait():
    """A queue that only knows the waits of those that it answered would look short while it answers nobody."""
    gate = Gate(is_open=False)

    async def run():
        with ThreadPoolExecutor(1) as executor:
            scheduler = Scheduler(gate, BatchPolicy(), 1, executor, Statistics())
            for _ in range(100):
                scheduler.load.under_way.add(None, 1)
            feeds = {"x": np.zeros((1, 3), np.float32)}
            first = asyncio.ensure_future(scheduler.submit(feeds, 1, ["y"], 0, 0))
            await started(gate)
            waiting = asyncio.ensure_future(scheduler.submit(feeds, 1, ["y"], 0, 0))
            await asyncio.sleep(0.05)
            assert scheduler.waiting == 1
            waiting.cancel()
            await settle()
            assert scheduler.waiting == 0
            assert scheduler.load.seconds_each >= 0.05 / 100 / 8
            gate.open.set()
            await first

    asyncio.run(run())


def test_a_request_that_waits_too_long_is_refused_and_never_run():
    gate = Gate(is_open=False)

    async def scenario(submit):
        first = submit(0)
        await started(gate)
        with pytest.raises(Unavailable, match="Request timeout expired"):
            await submit(1)
        gate.open.set()
        await first

    play(scenario, BatchPolicy(default=QueuePolicy(timeout_us=1000)), gate)
    assert gate.runs == [[0]]


def test_a_timeout_may_delay_instead():
    gate = Gate(is_open=False)

    async def scenario(submit):
        first = submit(0)
        await started(gate)
        late = submit(1, timeout_us=1000)
        await asyncio.sleep(0.02)
        in_time = submit(2)
        await settle()
        gate.open.set()
        await asyncio.gather(first, late, in_time)

    play(scenario, BatchPolicy(default=QueuePolicy(delay=True, allow_override=True)), gate)
    assert gate.runs == [[0], [2], [1]]


@pytest.mark.parametrize(
    ("policy", "asked", "wait"),
    [
        (QueuePolicy(), 5, 0),
        (QueuePolicy(timeout_us=9), 0, 9),
        (QueuePolicy(timeout_us=9), 5, 9),
        (QueuePolicy(timeout_us=9, allow_override=True), 5, 5),
        (QueuePolicy(timeout_us=9, allow_override=True), 50, 9),
        (QueuePolicy(allow_override=True), 50, 50),
    ],
)
def test_a_request_may_shorten_its_wait_where_the_policy_allows(policy, asked, wait):
    assert policy.wait_us(asked) == wait


def test_the_first_level_goes_first_and_unknown_levels_are_the_default():
    gate = Gate(is_open=False)

    async def scenario(submit):
        calls = [submit(0)]
        await started(gate)
        calls += [submit(1, priority=2), submit(2), submit(3, priority=9), submit(4, priority=1)]
        await settle()
        gate.open.set()
        await asyncio.gather(*calls)

    play(scenario, BatchPolicy(levels=2, default_level=2), gate)
    assert gate.runs == [[0], [4], [1], [2], [3]]


def test_a_cancelled_request_is_never_run():
    gate = Gate(is_open=False)

    async def scenario(submit):
        first = submit(0)
        await started(gate)
        gone, stays = submit(1), submit(2)
        await settle()
        gone.cancel()
        await settle()
        gate.open.set()
        await asyncio.gather(first, stays)

    play(scenario, BatchPolicy(max_rows=8), gate)
    assert gate.runs == [[0], [2]]


def test_a_delay_waits_for_more_but_not_when_the_batch_has_a_preferred_size():
    gate = Gate()

    async def scenario(submit):
        await asyncio.gather(submit(1), submit(2))  # preferred: at once, though the delay is long
        late = submit(3)
        await asyncio.sleep(0.01)
        await asyncio.gather(late, submit(4))

    play(scenario, BatchPolicy(max_rows=8, preferred=frozenset({2}), max_delay_us=10_000_000), gate)
    assert gate.runs == [[1, 2], [3, 4]]


def test_a_delay_ends():
    gate = Gate()

    async def scenario(submit):
        await submit(1)

    play(scenario, BatchPolicy(max_rows=8, max_delay_us=2000), gate)
    assert gate.runs == [[1]]


def test_a_full_batch_does_not_wait_for_a_lone_request_of_another_shape():
    gate = Gate()

    async def scenario(submit):
        alone = submit(1, width=5)
        await settle()
        await asyncio.gather(*(submit(value) for value in range(8)))
        assert not alone.done()
        alone.cancel()

    play(scenario, BatchPolicy(max_rows=8, max_delay_us=3_600_000_000), gate, instances=2)
    assert gate.runs == [list(range(8))]


def test_the_scheduler_looks_again_when_the_first_of_all_batches_is_due(monkeypatch):
    """A request of high priority comes last and is the head; that of low priority has waited longer."""
    looks = []
    monkeypatch.setattr(Scheduler, "_look_again", lambda self, loop, left_ns: looks.append(left_ns))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])
    clock = [0]

    async def scenario(submit):
        both = [submit(1, priority=2)]
        await settle()
        clock[0] = 400_000
        both.append(submit(2, width=5, priority=1))
        await settle()
        for one in both:
            one.cancel()

    play(scenario, BatchPolicy(max_rows=8, max_delay_us=1000, levels=2, default_level=2), Gate())
    assert looks == [1_000_000, 600_000]


def test_an_idle_model_does_not_wait():
    gate = Gate()

    async def scenario(submit):
        await submit(1)
        await submit(2)

    play(scenario, BatchPolicy(max_rows=8), gate)
    assert gate.runs == [[1], [2]]


def gated(model, gate, monkeypatch):
    """Let the runs of a served model pass ``gate``, by a queue with the policy of its configuration and no more."""

    def run(feeds, outputs):
        gate(feeds, ["y"])
        return model.run(feeds, outputs)

    policy, executor = read_policy(model.config), ThreadPoolExecutor(1)
    queue = Scheduler(run, policy, model.config.instance_group[0].count, executor, model.statistics)
    monkeypatch.setattr(queue, "may_run_now", lambda run_time: False)
    monkeypatch.setattr(model, "scheduler", queue)


def test_queue_policies_reach_the_wire(server, ask, monkeypatch):
    """config.pbtxt: two levels; the default queue holds two, the first waits at most 100 ms."""
    model = server.server.catalog.find("queue", "")
    gate = Gate(is_open=False)
    gated(model, gate, monkeypatch)
    rpc = server.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request_serializer=lambda m: m.SerializeToString()
    )
    first = rpc.future(ask("queue"), timeout=30)
    assert gate.started.acquire(timeout=10)
    waiting = [rpc.future(ask("queue"), timeout=30) for _ in range(2)]
    while model.scheduler.waiting < 2:
        time.sleep(0.001)
    with pytest.raises(grpc.RpcError) as full:
        rpc(ask("queue"), timeout=30)
    urgent = ask("queue")
    urgent.parameters["priority"].uint64_param = 1
    urgent.parameters["timeout"].int64_param = 1000
    with pytest.raises(grpc.RpcError) as expired:
        rpc(urgent, timeout=30)
    gate.open.set()
    for call in [first, *waiting]:
        call.result()
    assert (full.value.code(), full.value.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        "[request id: <id_unknown>] Exceeds maximum queue size",
    )
    assert (expired.value.code(), expired.value.details()) == (
        grpc.StatusCode.UNAVAILABLE,
        "Request timeout expired",
    )


def test_a_deadline_takes_the_request_off_the_queue(server, ask, monkeypatch):
    model = server.server.catalog.find("queue", "")
    gate = Gate(is_open=False)
    gated(model, gate, monkeypatch)
    rpc = server.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", request_serializer=lambda m: m.SerializeToString()
    )
    first = rpc.future(ask("queue"), timeout=30)
    assert gate.started.acquire(timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        rpc(ask("queue", x=[[9, 9, 9, 9]]), timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    heard = time.monotonic() + 10  # the caller's clock may run out a moment before the server's
    while model.scheduler.waiting and time.monotonic() < heard:
        time.sleep(0.01)
    cancelled = rpc.future(ask("queue", x=[[8, 8, 8, 8]]), timeout=30)
    cancelled.cancel()
    gate.open.set()
    first.result()
    rpc(ask("queue"), timeout=30)
    assert [9.0] not in gate.runs
