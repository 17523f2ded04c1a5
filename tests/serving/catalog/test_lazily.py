"""Lazy models: the first request loads, others wait for it, and little used ones are unloaded for others."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from normfold.protos import grpc_service as pb
from normfold.protos import metrics as mx
from normfold.serving.catalog import lazily, load, loader
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.entries import lines
from normfold.serving.catalog.entry import MADE_ROOM, NOT_LOADED, UNLOADED
from normfold.serving.catalog.following import served
from normfold.serving.catalog.lazily import LazyLimits
from normfold.serving.catalog.load import LoadOptions, memory_of
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import (
    LoadError,
    LoadHindered,
    LoadRefused,
    NotFound,
    Overloaded,
    ServingError,
    Unavailable,
)
from normfold.serving.runtime.devices import Device
from normfold.serving.scheduling.statistics import RequestTiming

#: The memory of a model in these tests.
EACH = 1000


@pytest.fixture
def root(tmp_path, models, monkeypatch):
    for name in "abcd":
        models.write(tmp_path / name, models.scale(), config="max_batch_size: 8")
    monkeypatch.setattr(load, "memory_of", lambda *_: EACH)
    return tmp_path


@pytest.fixture
def catalog(root):
    with ThreadPoolExecutor(1) as executor:

        def make(limits=LazyLimits()):  # noqa: B008
            options = LoadOptions(Device("cpu"), cpus=1, inline_seconds=1.0, arena=False)
            return Catalog(Repository(root), options, executor, lazy=limits)

        yield make


@pytest.fixture
def gate(monkeypatch):
    """Loads wait for this event; the names of the models that were loaded are kept."""
    event, loaded = threading.Event(), []
    real = loader.load

    def gated(folder, *rest):
        assert event.wait(60)
        loaded.append(folder.name)
        return real(folder, *rest)

    monkeypatch.setattr(loader, "load", gated)
    event.loaded = loaded
    return event


def states(catalog):
    return {row.name: (row.version, row.state, row.reason) for row in catalog.index(False)}


def test_the_first_request_loads_and_the_server_is_ready_before(catalog):
    made = catalog()

    async def use():
        assert not made.ready(strict=True)
        await made.load_all()
        assert made.ready(strict=True)
        assert states(made) == dict.fromkeys("abcd", ("", "UNAVAILABLE", NOT_LOADED))
        assert lines(made.entries) == [("4 models, each loaded by its first request", True)]
        with pytest.raises(Unavailable, match="loads at its first request"):
            made.find("a", "")
        first = await made.awake("a", "")
        assert made.wake("a") is None
        assert await made.awake("a", "1") is first is made.find("a", "")
        assert [row.name for row in made.index(only_ready=True)] == ["a"]
        assert [text for text, _ in lines(made.entries)][1:] == ["3 models, each loaded by its first request"]
        with pytest.raises(NotFound, match="'x' is not found"):
            await made.awake("x", "")
        with pytest.raises(NotFound, match="version 7 is not found"):
            await made.awake("b", "7")

    asyncio.run(use())


def test_requests_wait_for_one_load_and_those_that_leave_do_not_end_it(catalog, gate):
    made = catalog()

    async def use():
        await made.load_all()
        waiting = [asyncio.create_task(made.awake("a", "")) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        found = await asyncio.gather(*waiting[1:])
        assert len(set(map(id, found))) == 1

    asyncio.run(use())
    assert gate.loaded == ["a"]


def test_a_load_that_nobody_waits_for_any_more_is_dropped_before_it_begins(catalog, gate, monkeypatch):
    monkeypatch.setattr(lazily, "LOADS", 1)
    made = catalog()

    async def use():
        await made.load_all()
        first, second = (asyncio.create_task(made.awake(name, "")) for name in "ab")
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.sleep(0)
        gate.set()
        await first
        await made.awake("c", "")

    asyncio.run(use())
    assert gate.loaded == ["a", "c"]


def test_the_number_and_the_time_of_requests_that_wait_are_bounded(catalog, gate, monkeypatch):
    monkeypatch.setattr(lazily, "MOST_WAITING", 2)
    made = catalog(LazyLimits(wait_seconds=0.2))

    async def use():
        await made.load_all()
        waiting = [asyncio.create_task(made.awake("a", "")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="too many requests wait for model 'a' to load"):
            await made.awake("a", "")
        late = await asyncio.gather(*waiting, return_exceptions=True)
        assert all("it has been loading for longer than 0.2 s" in str(error) for error in late)
        assert {type(error) for error in late} == {Unavailable}
        gate.set()

    asyncio.run(use())


def test_the_idle_models_that_were_not_used_for_longest_make_room(catalog):
    made = catalog(LazyLimits(budget_bytes=3 * EACH + EACH // 5))
    dropped = []
    made.on_unload(lambda model: dropped.append(model.name))

    async def use():
        await made.load_all()
        for name in "abc":
            await made.awake(name, "")
        first = made.find("a", "")
        first.statistics.ran(2, 1, 10, 1)
        first.statistics.answered(2, 20, RequestTiming(1, 2, 3, 4))
        made.find("b", "").scheduler.load.under_way.add(None, 1)  # a request for b is under way
        await made.awake("d", "")
        assert dropped == ["c"]
        assert states(made)["c"] == ("1", "UNAVAILABLE", MADE_ROOM)
        assert made.ready(strict=True)
        made.find("b", "").scheduler.load.under_way.end(None, 1)
        await made.awake("c", "")
        assert dropped == ["c", "b"]
        await made.awake("b", "")
        assert dropped == ["c", "b", "a"]
        again = await made.awake("a", "")
        assert again is not first
        assert again.statistics.inferences == 2
        assert again.statistics.success.buckets[(20).bit_length()] == 1

    asyncio.run(use())


def test_busy_models_make_room_once_they_are_idle(catalog, monkeypatch, caplog):
    """The budget stayed exceeded until the next model was loaded."""
    monkeypatch.setattr(lazily, "LOOK_SECONDS", 0.001)
    made = catalog(LazyLimits(budget_bytes=EACH + EACH // 5))

    async def use():
        await made.load_all()
        for name in "abc":
            model = await made.awake(name, "")
            model.in_use += 1
        await asyncio.sleep(0.05)
        assert [name for name in "abc" if made.entries[name].ready] == ["a", "b", "c"]
        for name in "abc":
            made.entries[name].ready[0].in_use -= 1
        while made.entries["a"].ready or made.entries["b"].ready:
            await asyncio.sleep(0.001)
        assert [name for name in "abc" if made.entries[name].ready] == ["c"]
        assert made._lazily._next_look is None

    asyncio.run(asyncio.wait_for(use(), 20))
    assert caplog.text.count("more than the memory budget") == 1


def test_a_model_does_not_make_room_before_the_requests_that_loaded_it_have_their_turn(catalog):
    made = catalog(LazyLimits(budget_bytes=EACH))
    dropped = []
    made.on_unload(lambda model: dropped.append(model.name))

    async def use():
        await made.load_all()
        await made.awake("a", "")
        made._lazily._waiting["a"] = 1
        await made.awake("b", "")
        assert dropped == []
        del made._lazily._waiting["a"]
        await made.awake("c", "")
        assert dropped == ["a", "b"]

    asyncio.run(use())


def test_a_model_does_not_make_room_while_the_request_that_loaded_it_is_answered(serve, root, ask, monkeypatch):
    infer = Model.infer

    async def meanwhile(self, *rest):
        if self.name == "a":
            await one.server.catalog.awake("b", "")
        return await infer(self, *rest)

    monkeypatch.setattr(Model, "infer", meanwhile)
    with serve(root, load="lazily") as one:
        one.server.catalog._lazily._limits = LazyLimits(budget_bytes=EACH)
        one.infer(ask("a"))
        (row,) = one.call("ModelStatistics", pb.ModelStatisticsRequest(name="a")).model_stats
        assert row.inference_count == 1
        assert one.server.catalog.entries["a"].ready[0].idle


def test_counters_of_a_model_that_made_room_are_still_reported(catalog, serve, root, ask):
    with serve(root, load="lazily") as one:
        one.infer(ask("a"))
        entry = one.server.catalog.entries["a"]

        async def make_room():
            one.server.catalog._lazily._unload("a")

        one.on_loop(make_room())
        assert entry.asleep
        (row,) = one.call("ModelStatistics", pb.ModelStatisticsRequest(name="a")).model_stats
        assert row.inference_count == 1
        (shot,) = one.on_loop(one.server.snapshots.snapshot(mx.SnapshotRequest())).models
        assert (shot.statistics.name, sum(shot.request.counts)) == ("a", 1)
        one.infer(ask("a"))
        assert one.call("ModelStatistics", pb.ModelStatisticsRequest(name="a")).model_stats[0].inference_count == 2
        assert not one.call("ModelStatistics", pb.ModelStatisticsRequest(name="b")).model_stats


def test_counters_of_a_predecessor_wait_for_the_model(catalog):
    made = catalog()

    async def use():
        await made.load_all()
        counted = await made.awake("b", "")
        counted.statistics.ran(1, 1, 1, 1)
        made.entries["a"].restore(mx.ModelSnapshot(statistics=counted.statistics.message("a", "1")))
        made.entries["a"].restore(mx.ModelSnapshot(statistics=counted.statistics.message("a", "5")))
        assert [number for number, _ in made.entries["a"].statistics()] == [1]
        assert (await made.awake("a", "")).statistics.executions == 1

    asyncio.run(use())


def test_a_model_that_fails_has_its_reason_and_is_tried_again_later(catalog, root, models, monkeypatch):
    models.write(root / "a", b"\x08nothing")
    made = catalog()
    changes = []

    async def use():
        await made.load_all()
        made.on_change(lambda: changes.append(made.entries["a"].can_answer))
        with pytest.raises(NotFound, match="has no available versions"):
            await made.awake("a", "")
        assert states(made)["a"][:2] == ("1", "UNAVAILABLE")
        assert made.ready(strict=True)
        assert not made.entries["a"].can_answer
        models.write(root / "a", models.scale())
        assert made.wake("a") is None
        with pytest.raises(NotFound):
            await made.awake("a", "")
        later = lazily.time.monotonic() + lazily.RETRY_SECONDS + 1
        monkeypatch.setattr(lazily.time, "monotonic", lambda: later)
        assert await made.awake("a", "")
        await made.awake("b", "")

    asyncio.run(use())
    assert changes == [False, True]


def test_a_request_takes_the_versions_that_were_there_when_the_repository_was_read(catalog, root, models):
    made, later = catalog(), catalog()

    async def use():
        await made.load_all()
        models.write(root / "a", models.scale(3.0), 2)
        later.following.follow(served(made.entries))
        assert later.following.behind(Repository(root)) == ["a"]
        await later.load_all()
        later.following.follow(None)
        for one in (made, later):
            assert (await one.awake("a", "")).version == 1
            await one.refresh("a")
            assert one.find("a", "").version == 2
        models.write(root / "b", models.scale(3.0), 2)
        await made.refresh("b")
        assert made.entries["b"].asleep
        assert (await made.awake("b", "")).version == 2

    asyncio.run(use())


def test_what_a_client_loads_or_unloads_is_as_without_lazy_models(catalog, root, models):
    made = catalog(LazyLimits(budget_bytes=EACH + EACH // 5))

    async def use():
        await made.load_all()
        await made.unload("a", leave_out=True)
        assert states(made)["a"] == ("1", "UNAVAILABLE", "unloaded")
        with pytest.raises(NotFound):
            await made.awake("a", "")
        await made.load("a", override='{"max_batch_size": 4}')
        for name in "bc":
            await made.awake(name, "")
        assert made.find("a", "").contract.max_batch_size == 4  # its configuration exists nowhere else, so it stays
        assert made.entries["b"].asleep
        await made.load("a")
        await made.awake("b", "")
        assert made.entries["a"].asleep

    asyncio.run(use())


@pytest.fixture
def paused(monkeypatch):
    """Set once no process for trials is kept."""
    event = asyncio.Event()
    monkeypatch.setattr(loader.Loader, "pause", lambda self: event.set())
    return event


def test_no_process_for_trials_stays_when_there_was_no_load_for_a_while(catalog, paused, monkeypatch):
    monkeypatch.setattr(lazily, "PAUSE_SECONDS", 0.05)
    made = catalog()

    async def use():
        await made.load_all()
        await made.awake("a", "")
        await asyncio.wait_for(paused.wait(), 30)

    asyncio.run(use())


def test_the_process_for_trials_stays_while_there_is_a_load(catalog, gate, paused, monkeypatch):
    monkeypatch.setattr(lazily, "PAUSE_SECONDS", 0.02)
    made = catalog()

    async def use():
        await made.load_all()
        gate.set()
        await made.awake("a", "")
        gate.clear()
        later = asyncio.create_task(made.awake("b", ""))
        while not made.entries["b"].loading:
            await asyncio.sleep(0)
        paused.clear()  # a slow machine may have paused between the two loads
        await asyncio.sleep(0.1)
        assert not paused.is_set()
        gate.set()
        await later
        await asyncio.wait_for(paused.wait(), 30)

    asyncio.run(use())


def test_the_memory_of_a_model_is_what_its_load_took_within_reason():
    assert memory_of(100, 0, 350) == 350
    assert memory_of(100, 0, 10) == 100
    assert memory_of(100, 0, 1 << 30) == 400 + (1 << 20)  # another thread took it
    assert memory_of(100, None, None) == memory_of(100, 5, None) == 300 + (1 << 18)


def test_every_procedure_that_needs_the_model_loads_it(serve, root, ask, frontend):
    with serve(root, load="lazily", frontend=frontend) as one:
        assert one.call("ServerReady", pb.ServerReadyRequest()).ready
        assert one.call("ModelReady", pb.ModelReadyRequest(name="a", version="1")).ready
        assert not one.call("ModelReady", pb.ModelReadyRequest(name="a", version="2")).ready
        assert one.server.catalog.entries["a"].asleep
        assert one.infer(ask("a")).model_version == "1"
        assert one.call("ModelMetadata", pb.ModelMetadataRequest(name="b")).versions == ["1"]
        assert one.call("ModelConfig", pb.ModelConfigRequest(name="c")).config.max_batch_size == 8
        rpc = one.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        (answer,) = rpc(iter([ask("d")]), timeout=60)
        assert answer.infer_response.model_name == "d"
        assert not any(entry.asleep for entry in one.server.catalog.entries.values())


def test_a_deadline_ends_the_wait_and_the_load_goes_on(serve, root, ask, frontend, gate):
    with serve(root, load="lazily", frontend=frontend) as one:
        with pytest.raises(grpc.RpcError) as refused:
            one.infer(ask("a"), timeout=0.3)
        assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        gate.set()
        assert one.infer(ask("a")).model_version == "1"
    assert gate.loaded == ["a"]


def test_a_lazy_session_keeps_no_memory_for_its_next_run_but_its_runs_are_measured(serve, root, ask):
    with serve(root, load="lazily") as one:
        one.infer(ask("a"))
        model = one.server.catalog.find("a", "")
        assert not model.session.settings.arena
        assert model._sized is not None
    with serve(root) as one:
        assert one.server.catalog.find("a", "").session.settings.arena


def test_no_plan_keeps_a_model_that_made_room(serve, root, ask):
    with serve(root, load="lazily") as one:
        for _ in range(3):
            one.infer(ask("a"))
            one.infer(ask("b"))
        plans = one.server.service._inference._plans
        assert {plan.model.name for plan in plans._plans.values()} == {"a", "b"}

        async def make_room():
            one.server.catalog._lazily._unload("a")

        one.on_loop(make_room())
        assert {plan.model.name for plan in plans._plans.values()} == {"b"}
        assert one.infer(ask("a")).model_version == "1"


def test_a_model_on_the_cpu_does_not_keep_its_file_in_memory(serve, root, ask):
    with serve(root, load="lazily") as one:
        one.infer(ask("a"))
        held = one.server.catalog.find("a", "").session._session
        assert not [name for name, value in vars(held).items() if isinstance(value, bytes) and len(value) > 50]


@pytest.mark.parametrize("damage", ["file", "config", "both of two"])
def test_a_later_catalog_says_why_the_others_could_not_load_a_model(catalog, root, models, damage):
    if damage == "both of two":
        models.write(root / "a", b"nothing", 1)
        models.write(root / "a", b"nothing", 2)
    else:
        (root / "a" / ("1/model.onnx" if damage == "file" else "config.pbtxt")).write_text("no {", encoding="utf-8")

    async def scenario():
        first, later = catalog(), catalog()
        await first.load_all()
        await first.wake("a")
        later.following.follow(served(first.entries))
        await later.load_all()
        assert later.following.end(later.entries) == {}
        assert later.index(False) == first.index(False)
        assert [later.model_ready(name) for name in "abcd"] == [False, True, True, True]
        assert list(served(later.entries)) == list(served(first.entries))
        assert [0 in each.failing for each in served(later.entries)] == [True, False, False, False]
        await later.wake("a")  # it tries for itself
        assert later.index(False) == first.index(False)

    asyncio.run(scenario())


def test_a_model_that_another_worker_cannot_load_is_not_ready_and_is_answered_here(catalog):
    made, changes = catalog(), []

    async def scenario():
        await made.load_all()
        await made.awake("a", "")
        made.on_change(lambda: changes.append(made.model_ready("a")))
        made.hear({"a": (0, 1)}, ())
        assert made.find("a", "") is await made.awake("a", "1")
        made.hear({"a": (2,)}, ())
        assert [made.model_ready("a", number) for number in (1, 2)] == [True, False]
        made.hear({}, ())
        assert changes == [False, True, True]
        assert made.ready(strict=True)

    asyncio.run(scenario())


def test_a_model_that_another_worker_could_load_after_all_is_tried_by_the_next_request(catalog, root, models):
    models.write(root / "a", b"nothing")
    made = catalog()

    async def scenario():
        await made.load_all()
        await made.wake("a")
        models.write(root / "a", models.scale())
        assert made.wake("a") is None, "it failed a moment ago"
        made.hear({}, ("a", "b", "unknown"))
        assert made.model_ready("a")
        assert await made.awake("a", "")
        assert states(made)["b"] == ("", "UNAVAILABLE", NOT_LOADED)

    asyncio.run(scenario())


def test_a_later_catalog_repeats_the_load_of_a_client_with_the_versions_that_the_others_have(catalog, root, models):
    """A worker that was replaced served a new version that nobody had put in service in the others."""

    async def scenario():
        first, later = catalog(), catalog()
        await first.load_all()
        await first.load("a")
        models.write(root / "a", models.scale(3.0), 2)
        later.following.follow(served(first.entries))
        await later.load_all()
        await later.load("a")
        later.following.end(later.entries)
        assert later.index(False) == first.index(False)
        assert list(served(later.entries)) == list(served(first.entries))
        await later.load("a")
        assert later.find("a", "").version == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("text", "ready"),
    [
        ("", [3]),
        ("version_policy { all {} }", [1, 2, 3]),
        ("version_policy { specific { versions: 2 } }", [2]),
        ("no {", [1, 2, 3]),  # its first request says why
    ],
)
def test_a_version_that_no_request_loads_is_not_ready(catalog, root, models, text, ready):
    """Readiness of an old version was another one before the first request than after it."""
    for version in (2, 3):
        models.write(root / "a", models.scale(float(version)), version, text)
    made = catalog()

    async def scenario():
        await made.load_all()
        assert [number for number in range(5) if made.model_ready("a", number)] == ready
        if text != "no {":
            await made.awake("a", "")
            assert [number for number in range(5) if made.model_ready("a", number)] == ready

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["file", "config", "gone"])
@pytest.mark.parametrize("woken", [False, True])
def test_a_load_that_fails_takes_no_model_out_of_service_also_where_it_is_not_loaded(
    catalog, root, models, damage, woken
):
    """Workers that had the model in memory went on answering, and in the others no version was there any more."""
    made = catalog(LazyLimits(budget_bytes=EACH))

    async def scenario():
        await made.load_all()
        if woken:
            await made.awake("a", "")
            await made.awake("b", "")  # makes room
        before = states(made)["a"]
        if damage == "file":
            models.write(root / "a", b"nothing", 2)
        elif damage == "config":
            (root / "a/config.pbtxt").write_text("no {", encoding="utf-8")
        else:
            (root / "a").rename(root / ".a")
        with pytest.raises(ServingError):
            await made.load("a")
        assert made.model_ready("a", 1)
        assert states(made)["a"] == before
        assert not next(each for each in served(made.entries) if each.name == "a").refused
        if damage == "file":
            assert (await made.awake("a", "")).version == 1

    asyncio.run(scenario())


def test_a_later_catalog_has_a_model_of_the_others_that_is_gone_from_the_disk(catalog, root):
    """Through a worker that was replaced the model was unknown, also when its folder was there again."""

    async def scenario():
        first = catalog()
        await first.load_all()
        await first.awake("a", "")
        (root / "a").rename(root / ".a")
        later = catalog()
        later.following.follow(served(first.entries))
        await later.load_all()
        later.following.end(later.entries)
        assert [one.model_ready("a", 1) for one in (first, later)] == [True, True]
        assert list(served(later.entries)) == list(served(first.entries))
        with pytest.raises(NotFound, match="there is no such folder"):
            await later.awake("a", "")
        (root / ".a").rename(root / "a")
        later.hear({}, ("a",))
        assert (await later.awake("a", "")).version == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("failing", "version"), [((), 2), ((2,), 1), ((0, 2), 2), ((1, 2), 2)])
def test_a_version_that_a_worker_refused_takes_no_other_one_out_of_service_here(
    catalog, root, models, failing, version
):
    """Where the model was in memory the old version went on; where it was not, its next request found none."""
    models.write(root / "a", models.scale(3.0), 2)
    made = catalog()

    async def scenario():
        await made.load_all()
        made.hear({"a": failing} if failing else {}, ())
        assert (await made.awake("a", "")).version == version

    asyncio.run(scenario())


def test_a_refused_version_of_a_model_that_was_unloaded_to_make_room_is_tried_again_once(
    catalog, root, models, monkeypatch
):
    """It was tried again for ever: each time its folder was looked at, and the reason stayed."""
    made = catalog(LazyLimits(EACH))

    def no_memory(*_):
        raise MemoryError

    async def scenario():
        await made.load_all()
        await made.awake("a", "")
        models.write(root / "a", models.scale(3.0), 2)
        with monkeypatch.context() as patched:
            patched.setattr(loader, "load", no_memory)
            with pytest.raises(LoadHindered):
                await made.refresh("a")
        assert made.hindered.names == {"a"}
        await made.awake("b", "")
        await made.refresh("a")
        assert made.hindered.names == set()
        assert (await made.awake("a", "")).version == 2

    asyncio.run(scenario())


def test_a_version_that_a_request_could_not_load_for_want_of_memory_is_tried_again(catalog, root, models, monkeypatch):
    """Another version answered, so that no request tried it again, and a server that polls did not, either."""
    models.write(root / "a", models.scale(3.0), 2, "version_policy { all {} }")
    made = catalog(LazyLimits())
    load = loader.load

    def no_memory(folder, written, version, *rest):
        if version == 2:
            raise MemoryError
        return load(folder, written, version, *rest)

    async def scenario():
        await made.load_all()
        with monkeypatch.context() as patched:
            patched.setattr(loader, "load", no_memory)
            assert (await made.awake("a", "")).version == 1
        assert made.hindered.names == {"a"}
        await made.refresh("a")  # as a server that polls does with each of these
        assert made.hindered.names == set()
        assert (await made.awake("a", "")).version == 2

    asyncio.run(scenario())


def test_a_model_that_failed_is_one_that_fails_until_it_is_loaded(catalog, root, models, monkeypatch):
    """While it was tried again a change of any other model had the other workers think that it was loaded."""
    monkeypatch.setattr(lazily, "RETRY_SECONDS", -1.0)
    models.write(root / "a", b"nothing")
    made, reports = catalog(), []
    real = loader.load

    def report():
        reports.extend((each.failing, each.recoveries) for each in served(made.entries) if each.name == "a")

    monkeypatch.setattr(loader, "load", lambda *arguments: report() or real(*arguments))

    async def scenario():
        await made.load_all()
        for _ in range(2):
            with pytest.raises(NotFound):
                await made.awake("a", "")
        models.write(root / "a", models.scale())
        for _ in range(2):
            await made.awake("a", "")
        report()

    asyncio.run(scenario())
    assert reports == [((), 0), ((0, 1), 0), ((0, 1), 0), ((), 1)]


@pytest.mark.parametrize("refused", ["here", "elsewhere"])
def test_a_refused_version_is_tried_when_no_other_worker_refuses_it_any_more(catalog, root, models, refused):
    """It was forgotten until the model's files changed."""
    policy = "version_policy { all {} }"
    models.write(root / "a", b"nothing" if refused == "here" else models.scale(3.0), 2, policy)
    made = catalog(LazyLimits(EACH))

    async def scenario():
        await made.load_all()
        if refused == "elsewhere":
            made.hear({"a": (2,)}, ())
        assert (await made.awake("a", "1")).version == 1
        made.hear({"a": (2,)} if refused == "here" else {}, ())
        await made.awake("b", "")
        models.write(root / "a", models.scale(3.0), 2)
        assert (await made.awake("a", "")).version == 2

    asyncio.run(scenario())


def test_a_refused_version_is_known_also_after_the_model_made_room(catalog, root, models):
    """The other workers tried it then, and had no version that answers."""
    made = catalog(LazyLimits(EACH))

    async def scenario():
        await made.load_all()
        await made.awake("a", "")
        models.write(root / "a", b"nothing", 2)
        with pytest.raises(LoadRefused):
            await made.load("a")
        for name in "ba":
            await made.awake(name, "")
        assert [each.failing for each in served(made.entries) if each.name == "a"] == [(2,)]

    asyncio.run(scenario())


def test_a_model_that_is_unloaded_because_its_folder_is_gone_is_known_wherever_it_was_ready(catalog):
    """It was unknown through the workers where no request had come for it, and unloaded through the others."""
    used, unused = catalog(), catalog()

    async def scenario():
        for one in (used, unused):
            await one.load_all()
        await used.awake("a", "")
        for one in (used, unused):
            await one.unload("a")
        assert states(used)["a"] == states(unused)["a"] == ("1", "UNAVAILABLE", UNLOADED)

    asyncio.run(scenario())


def test_the_others_are_told_of_each_version_that_does_not_load(catalog, root, models):
    models.write(root / "a", b"nothing", 2, "version_policy { all {} }")
    made, reports = catalog(), []

    async def scenario():
        await made.load_all()
        made.on_change(lambda: reports.extend(each for each in served(made.entries) if each.name == "a"))
        await made.awake("a", "1")
        assert [each.failing for each in reports] == [(2,)]
        later = catalog()
        later.following.follow(served(made.entries))
        await later.load_all()
        later.following.end(later.entries)
        assert later.model_ready("a")
        assert await later.awake("a", "1")

    asyncio.run(scenario())


@pytest.mark.parametrize("broken", [True, False])
def test_a_model_that_is_loaded_again_makes_no_room_before_its_load_ends(catalog, root, models, monkeypatch, broken):
    """It was in memory all the same after that load, and its requests were counted twice."""
    made = catalog(LazyLimits(EACH))

    async def scenario():
        await made.load_all()
        (await made.awake("a", "")).statistics.ran(1, 1, 1, 1)
        with monkeypatch.context() as patched:

            async def load_versions(*given):
                patched.undo()
                await made.awake("b", "")
                return ({}, {1: LoadError("broken")}) if broken else await made._loader.load_versions(*given)

            patched.setattr(made._loader, "load_versions", load_versions)
            with pytest.raises(LoadRefused) if broken else contextlib.nullcontext():
                await made.refresh("a")
        entry = made.entries["a"]
        assert entry.asleep is not bool(entry.ready)
        assert [row.execution_count for _, row in entry.statistics()] == [1]
        assert (await made.awake("a", "")).statistics.executions == 1

    asyncio.run(scenario())
