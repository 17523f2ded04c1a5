"""The stages of a model: whatever clients, requests, the start and the disk do, each has what it must have."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normfold.protos import metrics as mx
from normfold.serving.catalog import lazily, loader
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.following import served
from normfold.serving.catalog.lazily import LazyLimits
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.repository import Repository
from normfold.serving.catalog.stage import Stage
from normfold.serving.errors import (
    Hindered,
    LoadError,
    LoadRefused,
    NotFound,
    PollFailed,
    ServingError,
    StartError,
    Unavailable,
)
from normfold.serving.runtime.devices import Device
from normfold.serving.scheduling.statistics import Statistics

NAMES = ("a", "b")
ALL = "version_policy { all {} }"


class Loaded:
    """Stands for a version in memory."""

    memory_bytes, idle = 1000, True

    def __init__(self, name, version):
        self.name, self.version, self.used_ns, self.statistics = name, version, time.monotonic_ns(), Statistics()

    def describe(self):
        return self.name

    def snapshot(self):
        return mx.ModelSnapshot(statistics=self.statistics.message(self.name, str(self.version)))


@contextlib.contextmanager
def catalogs(folder, broken=(), away=(), names=(), short=()):
    """A function that makes catalogs, which load ``names`` at the start.

    Every version loads whose name and number are in none of ``broken``, ``away`` and ``short``.
    """

    def load(folder, written, version, *rest):
        if (folder.name, version) in broken:
            raise LoadError("broken")
        if (folder.name, version) in away:
            raise StartError("the device is away")
        if (folder.name, version) in short:
            raise Hindered("too little memory")
        return Loaded(folder.name, version)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as executor:
        patch.setattr("normfold.serving.catalog.loader.load", load)
        patch.setattr(lazily, "RETRY_SECONDS", -1.0)
        options = LoadOptions(Device("cpu"), cpus=1, inline_seconds=1.0)
        lazy = LazyLimits(budget_bytes=1500)
        yield lambda is_lazy: Catalog(Repository(folder), options, executor, names, lazy=lazy if is_lazy else None)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    return tmp_path


def write(root, text=ALL, versions=1):
    """Write a repository whose model files nobody reads."""
    for name in NAMES:
        for number in range(1, versions + 1):
            (root / name / str(number)).mkdir(parents=True)
            (root / name / str(number) / "model.onnx").write_bytes(b"any")
        (root / name / "config.pbtxt").write_text(text, encoding="utf-8")


def check(made):
    """Compare what the parts of a catalog know of each model, while nothing is under way."""
    for name, entry in made.entries.items():
        assert entry.loading is None
        answers = bool(entry.ready)
        assert answers == {Stage.AWAKE: True, Stage.EAGER: answers}.get(entry.stage, False), entry
        assert not {*entry.answering} & {*entry.kept}, "counted twice"
        assert made.model_ready(name) == (answers or entry.stage is Stage.ASLEEP)
        assert ({row.state for row in made.index(True) if row.name == name} == {"READY"}) == answers
        assert (0 in entry.failing) <= (not made.model_ready(name))
        assert not [number for number, _ in entry.refused if made.model_ready(name, number)]
        assert entry.known, "an entry of which nothing is known"
        if made._lazily is not None:
            assert (name in made._lazily._bytes) == answers
    wanted = [entry for entry in made.entries.values() if entry.stage not in (Stage.OUT, Stage.LEFT_OUT)]
    lazy = (Stage.AWAKE, Stage.ASLEEP, Stage.FAILED)
    assert made.loaded(strict=True) == (
        bool(made.entries) and all(entry.ready or entry.stage in lazy for entry in wanted)
    )


KINDS = ("load", "send", "give up", "unload", "gone", "refresh", "ask", "fail", "mend", "config", "no config")


@settings(max_examples=60, deadline=None)
@given(
    is_lazy=st.booleans(),
    text=st.sampled_from([ALL, "", "version_policy { latest { num_versions: 2 } }"]),
    versions=st.integers(1, 4),
    broken=st.sets(st.tuples(st.sampled_from(NAMES), st.integers(1, 4))),
    steps=st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(NAMES), st.integers(1, 4)), max_size=12),
)
def test_each_stage_has_what_it_must_have_after_whatever_happens(
    tmp_path_factory, is_lazy, text, versions, broken, steps
):
    root = tmp_path_factory.mktemp("stages")
    write(root, text, versions)

    async def life(made):
        does = {
            "load": made.load,
            "send": lambda name: made.load(name, '{"version_policy": {"all": {}}}'),
            "unload": lambda name: made.unload(name, leave_out=True),
            "gone": made.unload,
            "refresh": made.refresh,
            "ask": lambda name: made.awake(name, ""),
        }
        await made.load_all()
        check(made)
        for kind, name, number in steps:
            if kind in ("fail", "mend"):
                (broken.add if kind == "fail" else broken.discard)((name, number))
            elif kind in ("config", "no config"):
                written = text if kind == "config" else "version_policy {"
                (root / name / "config.pbtxt").write_text(written, encoding="utf-8")
            elif kind == "give up":
                load = asyncio.create_task(made.load(name))
                await asyncio.sleep(0.0005)
                load.cancel()
                await asyncio.wait([load])
            else:
                with contextlib.suppress(ServingError):
                    await does[kind](name)
            check(made)

    with catalogs(root, broken) as make:
        asyncio.run(life(make(is_lazy)))


@pytest.mark.parametrize("kind", ["load", "unload", "fails"])
def test_what_a_client_does_while_the_start_looks_at_lazy_models_stays(folder, kind):
    """What it had unloaded came back, and what it had loaded was dropped."""
    broken = {("a", 1)} if kind == "fails" else set()

    async def scenario(made):
        look = made._sources.versions

        def meanwhile(names):
            client = made.unload("a", leave_out=True) if kind == "unload" else made.load("a")
            done = asyncio.run_coroutine_threadsafe(client, loop)
            with contextlib.suppress(LoadRefused):
                done.result(30)
            return look(names)

        loop, made._sources.versions = asyncio.get_running_loop(), meanwhile
        await made.load_all()
        stage = {"load": Stage.AWAKE, "unload": Stage.LEFT_OUT, "fails": Stage.ASLEEP}[kind]
        assert {name: entry.stage for name, entry in made.entries.items()} == {"a": stage, "b": Stage.ASLEEP}
        check(made)

    with catalogs(folder, broken) as make:
        asyncio.run(scenario(make(True)))


def test_the_start_does_not_load_again_what_a_client_has_loaded_and_unloaded(folder):
    """It came back: the start had seen that it was loading, and waited for its turn."""

    async def scenario(made):
        lock = made._lock("a")
        await lock.acquire()
        client = [asyncio.create_task(made.load("a")), asyncio.create_task(made.unload("a", leave_out=True))]
        await asyncio.sleep(0)
        start = asyncio.create_task(made.load_all())
        while "b" not in made._locks:
            await asyncio.sleep(0.001)
        lock.release()
        await asyncio.gather(start, *client)
        assert made.entries["a"].stage is Stage.LEFT_OUT
        check(made)

    with catalogs(folder) as make:
        asyncio.run(scenario(make(False)))


async def give_up(made, name):
    """Begin a load as a client, and leave before it ends."""
    load = asyncio.create_task(made.load(name))
    await asyncio.sleep(0)
    load.cancel()
    await asyncio.wait([load])


def test_a_load_that_a_client_gives_up_before_the_start_leaves_the_model_to_the_start(folder):
    """It was never loaded."""

    async def scenario(made):
        await give_up(made, "a")
        await made.load_all()
        assert made.loaded(strict=True)
        assert made.find("a", "")

    with catalogs(folder) as make:
        asyncio.run(scenario(make(False)))


def test_a_load_that_is_given_up_keeps_no_server_from_being_ready(folder, monkeypatch):
    """The first model of a server was waited for, although nobody loaded it any more."""

    async def scenario(made):
        for name in NAMES:
            await made.unload(name)
        plan = made._sources.plan
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def run(function, *given):
            if function == plan and not go_on.is_set():
                begun.set()
                await go_on.wait()
            return function(*given)

        made._loader.run = run
        load = asyncio.create_task(made.load("a"))
        await begun.wait()
        assert made.entries["a"].stage is Stage.EAGER
        load.cancel()
        await asyncio.wait([load])
        go_on.set()
        made.started = True
        await made.load("b")
        assert made.loaded(strict=True)
        check(made)

    with catalogs(folder) as make:
        asyncio.run(scenario(make(False)))


def test_a_version_with_the_configuration_of_a_client_stays_in_memory_also_beside_one_that_failed(folder):
    """It made room, and the next request loaded it with another configuration."""
    (folder / "a" / "2").mkdir()
    (folder / "a" / "2" / "model.onnx").write_bytes(b"any")
    broken = {("a", 1), ("a", 2)}

    async def scenario(made):
        await made.load_all()
        with pytest.raises(ServingError):
            await made.awake("a", "")
        assert made.entries["a"].stage is Stage.FAILED
        broken.discard(("a", 1))
        with pytest.raises(LoadRefused):
            await made.load("a", '{"version_policy": {"all": {}}}')
        await made.awake("b", "")
        assert (made.entries["a"].stage, made.entries["a"].answering) == (Stage.EAGER, (1,))
        await made.unload("a")
        with pytest.raises(LoadRefused):
            await made.load("a")
        await made.awake("b", "")
        assert made.entries["a"].stage is Stage.ASLEEP, "with that of its folder it makes room"

    with catalogs(folder, broken) as make:
        asyncio.run(scenario(make(True)))


def test_a_model_makes_no_room_while_the_files_of_its_next_load_are_looked_for(folder):
    """If that load then failed, the model counted as failed, although it had only made room."""

    async def scenario(made):
        await made.load_all()
        await made.awake("a", "")
        files = made._sources.files

        def meanwhile(name, *given):
            if name == "a":
                asyncio.run_coroutine_threadsafe(made.awake("b", ""), loop).result(30)
            return files(name, *given)

        loop, made._sources.files = asyncio.get_running_loop(), meanwhile
        with pytest.raises(PollFailed):
            await made.load("a", "no JSON")
        assert made.model_ready("a")
        check(made)

    with catalogs(folder) as make:
        asyncio.run(scenario(make(True)))


@pytest.mark.parametrize("damage", ["config", "version"])
def test_a_model_that_a_client_loads_again_without_success_is_loaded_once_its_files_are_mended(folder, damage):
    """With a configuration that could not be read it stayed left out."""
    broken = set()

    async def scenario(made):
        await made.load_all()
        await made.unload("a", leave_out=True)
        assert not made.follows("a")
        if damage == "config":
            (folder / "a" / "config.pbtxt").write_text("version_policy {", encoding="utf-8")
        else:
            broken.add(("a", 1))
        with pytest.raises(LoadRefused):
            await made.load("a")
        assert made.follows("a")
        assert not made.entries["a"].wanted

    with catalogs(folder, broken) as make:
        asyncio.run(scenario(make(False)))


def test_a_model_whose_device_is_away_is_tried_again_unless_a_client_unloads_it(folder):
    """It was forgotten: where the start loads certain models, SIGHUP left it out; else it came after the unload."""

    async def scenario(made):
        await made.load_all()
        with pytest.raises(StartError):
            await made.load("b")
        assert [(row.state, row.reason) for row in made.index(False) if row.name == "b"] == [
            ("UNAVAILABLE", "the device is away")
        ]
        assert made.follows("b")
        assert made.loaded(strict=True)
        await made.unload("b", leave_out=True)
        assert not made.follows("b")
        check(made)

    with catalogs(folder, away=[("b", 1)], names=["a"]) as make:
        asyncio.run(scenario(make(False)))


def test_a_model_that_is_gone_when_the_turn_of_its_request_comes_is_not_found(folder):
    """The request got an internal error."""
    shutil.rmtree(folder / "a" / "1")

    async def scenario(made):
        await made.load_all()
        assert made.entries["a"].stage is Stage.ASLEEP
        async with made._lock("a"):
            waiting = asyncio.create_task(made.awake("a", ""))
            await asyncio.sleep(0.01)
            del made.entries["a"]
        with pytest.raises(ServingError, match="'a' is not found"):
            await waiting

    with catalogs(folder) as make:
        asyncio.run(scenario(make(True)))


def test_a_later_worker_knows_that_a_client_wants_a_model_back_which_it_had_unloaded(folder):
    """It repeats only what has succeeded: the unload, and not the load after it. Mended files were not loaded."""
    broken = set()

    async def scenario(make):
        first, later = make(False), make(False)
        await first.load_all()
        await first.unload("a", leave_out=True)
        broken.add(("a", 1))
        with pytest.raises(LoadRefused):
            await first.load("a")
        later.following.follow(served(first.entries))
        await later.load_all()
        await later.unload("a", leave_out=True)
        later.following.end(later.entries)
        assert later.follows("a") is first.follows("a") is True
        check(later)

    with catalogs(folder, broken) as make:
        asyncio.run(scenario(make))


def test_a_later_worker_goes_on_reporting_what_the_others_have_told_it_while_it_loads_for_the_first_time(folder):
    """A model that failed in the others was missing in its reports, so that it was ready meanwhile."""
    reports = []

    async def scenario(make):
        first, later = make(False), make(False)
        await first.load_all()
        await first.unload("a", leave_out=True)
        later.following.follow(served(first.entries))
        await later.load_all()
        later.following.end(later.entries)
        before = list(served(later.entries))
        real = later._loader.load_versions

        async def load_versions(*given):
            reports.extend(served(later.entries))
            return await real(*given)

        later._loader.load_versions = load_versions
        await later.load("a")
        assert reports == before

    with catalogs(folder) as make:
        asyncio.run(scenario(make))


@pytest.mark.parametrize("is_lazy", [False, True])
def test_the_version_below_answers_where_the_highest_does_not_load(folder, is_lazy, caplog):
    """A server that started after a bad rollout was not ready, while those that ran went on with the version before."""
    write(folder / "more", "", 3)
    broken = {("a", 3)}

    async def scenario(made):
        await made.load_all()
        assert (await made.awake("a", "")).version == 2
        assert made.loaded(strict=True)
        assert made.model_ready("a")
        assert "load failed for model 'a': version 3 is at UNAVAILABLE state: broken; version 2 answers instead" in [
            record.getMessage() for record in caplog.records
        ]
        assert [(row.version, row.state) for row in made.index(False) if row.name == "a"] == [
            ("2", "READY"),
            ("3", "UNAVAILABLE"),
        ]
        check(made)
        broken.clear()  # its files are mended
        await made.refresh("a")
        assert (await made.awake("a", "")).version == 3
        with pytest.raises(ServingError, match="version 2 is not at ready state: unloaded"):
            await made.awake("a", "2")
        check(made)

    with catalogs(folder / "more", broken) as make:
        asyncio.run(scenario(make(is_lazy)))


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_version_that_has_failed_is_unavailable_while_the_one_below_loads(folder, is_lazy):
    """It was LOADING, without a reason, until the version below had loaded, too."""
    write(folder / "more", "", 3)
    seen, ready = [], []

    async def scenario(made):
        real = made._loader.run

        async def run(function, *arguments):
            if arguments[2:3] == (2,):  # the version below
                seen.extend((row.version, row.state, row.reason) for row in made.index(False) if row.name == "a")
                ready.append(made.model_ready("a", 3))
                if not is_lazy:
                    with pytest.raises(Unavailable, match="version 3 is not at ready state: broken"):
                        made.find("a", "3")
                    with pytest.raises(Unavailable, match="version 2 is not at ready state: it is still loading"):
                        made.find("a", "2")
            return await real(function, *arguments)

        made._loader.run = run
        await made.load_all()
        assert (await made.awake("a", "")).version == 2
        assert seen == [("2", "LOADING", ""), ("3", "UNAVAILABLE", "broken")]
        assert ready == [False]
        check(made)

    with catalogs(folder / "more", {("a", 3)}) as make:
        asyncio.run(scenario(make(is_lazy)))


def test_a_load_that_is_given_up_after_a_version_failed_leaves_no_trace(folder):
    """The model, which nobody had loaded before, stayed in the index."""
    write(folder / "more", "", 2)

    async def scenario(made):
        await made.load_all()
        begun, go = asyncio.Event(), threading.Event()
        loop, real = asyncio.get_running_loop(), loader.load

        def load(files, written, version, *rest):
            if (files.name, version) == ("a", 1):
                loop.call_soon_threadsafe(begun.set)
                go.wait(30)
            return real(files, written, version, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader, "load", load)
            client = asyncio.create_task(made.load("a"))
            await begun.wait()
            client.cancel()
            go.set()
            await asyncio.wait([client])
        assert {row.name for row in made.index(False)} == {"b"}
        check(made)

    with catalogs(folder / "more", {("a", 2)}, names=["b"]) as make:
        asyncio.run(scenario(make(False)))


def test_a_device_that_is_away_after_a_version_failed_is_the_reason_of_the_model(folder):
    """The index showed the version that had failed alone."""
    write(folder / "more", "", 2)

    async def scenario(made):
        await made.load_all()
        with pytest.raises(StartError):
            await made.load("b")
        assert [(row.version, row.reason) for row in made.index(False) if row.name == "b"] == [
            ("", "the device is away")
        ]
        check(made)

    with catalogs(folder / "more", {("b", 2)}, away=[("b", 1)], names=["a"]) as make:
        asyncio.run(scenario(make(False)))


def test_a_version_that_failed_is_not_ready_after_the_one_below_made_room(folder):
    """With one process its readiness came with the unload of the version that answered in its place."""
    write(folder / "more", "", 2)

    async def scenario(made):
        await made.load_all()
        assert (await made.awake("a", "")).version == 1
        await made.awake("b", "")
        assert made.entries["a"].stage is Stage.ASLEEP
        assert [made.model_ready("a", number) for number in (None, 1, 2)] == [True, True, False]
        check(made)

    with catalogs(folder / "more", {("a", 2)}) as make:
        asyncio.run(scenario(make(True)))


@pytest.mark.parametrize(
    ("text", "versions", "answering"),
    [
        ("", 4, (1,)),
        ("", 5, ()),  # three lower ones are tried
        ("version_policy { specific { versions: 4 } }", 4, ()),
        ("version_policy { latest { num_versions: 2 } }", 4, (1,)),
        (ALL, 4, (1,)),
    ],
)
def test_three_lower_versions_are_tried_unless_the_policy_names_others(folder, text, versions, answering):
    write(folder / "more", text, versions)
    tried = {("a", number) for number in range(2, versions + 1)}

    async def scenario(made):
        with pytest.raises(LoadRefused):
            await made.load("a")
        assert made.entries["a"].answering == answering
        check(made)

    with catalogs(folder / "more", tried) as make:
        asyncio.run(scenario(make(False)))


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_version_for_which_memory_was_short_is_tried_again(folder, is_lazy):
    """A lazy model stayed with the version below: requests load a model again only where no version answers."""
    write(folder / "more", "", 2)
    short = {("a", 2)}

    async def scenario(made):
        await made.load_all()
        if is_lazy:
            with pytest.raises(NotFound, match="version 2: too little memory"):
                await made.awake("a", "")
        else:
            assert (await made.awake("a", "")).version == 1
            assert made.hindered.names == {"a"}  # a server that polls loads these again
        check(made)
        short.clear()
        if not is_lazy:
            await made.refresh("a")
        assert (await made.awake("a", "")).version == 2
        check(made)

    with catalogs(folder / "more", short=short) as make:
        asyncio.run(scenario(make(is_lazy)))
