"""Polling goes on whatever a look meets: each failure is logged once, and the next look finds what has changed."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from normfold.serving.catalog.hindered import HinderedModels
from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import LoadHindered, LoadRefused
from normfold.serving.server import Server
from normfold.serving.service import pauses, polling
from normfold.serving.service.polling import Polling
from normfold.serving.settings import ServerConfig


@pytest.fixture
def root(tmp_path, models):
    for name in ("m", "n"):
        models.write(tmp_path / name, models.scale(), 1, "max_batch_size: 8")
    return tmp_path


@pytest.fixture
def away(monkeypatch):
    """A set of paths; every look at one of them, or at what lies below, fails like a file system that is away."""
    paths: dict[Path, int] = {}

    def fails(function):
        def look(path, *arguments, **options):
            for away, number in paths.items():
                if isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(away):
                    raise OSError(number, os.strerror(number))
            return function(path, *arguments, **options)

        return look

    for name in ("stat", "lstat", "scandir", "listdir", "open"):
        monkeypatch.setattr(os, name, fails(getattr(os, name)))
    return paths


class Asked:
    """A method whose requests are only noted."""

    def __init__(self, fails: str = "") -> None:
        self.names: list[str] = []
        self._fails = fails

    def answer(self, data: bytes) -> bytes:
        name = polling.pb.RepositoryModelLoadRequest.FromString(data).model_name
        self.names.append(name)
        if name == self._fails:
            raise RuntimeError("can't start new thread")
        return b""


class Everything:
    """A catalog that follows each model."""

    def __init__(self) -> None:
        self.hindered = HinderedModels()

    def follows(self, name: str) -> bool:
        return True


async def polled(root, steps, refresh=None, fails=""):
    """What was asked to be loaded while ``steps`` were taken, with two looks after each."""
    load, unload = Asked(fails), Asked()
    one = Polling(Repository(root), Everything(), 0.001, refresh)
    one.share([load, unload])
    looks = 0
    look = one._changes.look

    def counted():
        nonlocal looks
        looks += 1
        return look()

    one._changes.look = counted
    await one.begin()
    task = asyncio.create_task(one.run())
    for step in steps:
        step()
        until = looks + 3
        while looks < until and not task.done():
            await asyncio.sleep(0.001)
    assert not task.done(), "polling has ended"
    task.cancel()
    return list(dict.fromkeys(load.names)), unload.names  # a look may find files that are just written, and load again


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EACCES])
def test_a_model_that_cannot_be_looked_at_for_a_while_changes_nothing(root, models, away, number):
    steps = [
        lambda: away.update({root / "m": number}),
        lambda: models.write(root / "n", models.scale(3.0), 2),
        away.clear,
        lambda: models.write(root / "m", models.scale(3.0), 2),
    ]
    assert asyncio.run(polled(root, steps)) == (["n", "m"], [])


def test_a_version_that_stays_half_copied_is_a_line_in_the_log(root, models, caplog):
    """Nothing was said of a release that was never loaded."""
    steps = [
        lambda: models.write(root / "n", b"", 2),
        lambda: (root / "m/config.pbtxt").write_text("max_batch_size: 4", encoding="utf-8"),
        lambda: models.write(root / "n", models.scale(3.0), 2),
    ]
    assert asyncio.run(polled(root, steps)) == (["m", "n"], [])
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "the repository has changed: 'n' is loaded once it is whole: version 2 has no .onnx file, or an empty one"
    ]


def test_models_that_the_workers_have_read_differently_are_loaded_first(root):
    async def scenario():
        load, unload = Asked(), Asked()
        one = Polling(Repository(root), SimpleNamespace(follows=lambda name: name != "m"), 0)
        one.share([load, unload])
        await one.begin()
        task = asyncio.create_task(one.run(["m", "n"]))  # a client has just unloaded "m"
        while not load.names and not task.done():
            await asyncio.sleep(0.001)
        task.cancel()
        return load.names, unload.names

    assert asyncio.run(scenario()) == (["n"], [])


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_no_model_is_gone_while_the_repository_opens_but_is_not_listed(root, monkeypatch, number):
    steps = []
    listdir, iterdir = os.listdir, Path.iterdir

    def fail():
        def fails(path=".", *arguments):
            if Path(path) == root:
                raise OSError(number, os.strerror(number))
            return listdir(path, *arguments)

        monkeypatch.setattr(os, "listdir", fails)
        monkeypatch.setattr(Path, "iterdir", lambda path: map(path.joinpath, fails(path)))

    def mend():
        monkeypatch.setattr(os, "listdir", listdir)
        monkeypatch.setattr(Path, "iterdir", iterdir)

    steps = [fail, mend]
    assert asyncio.run(polled(root, steps)) == ([], [])


def test_a_look_that_fails_in_another_way_is_logged_once_and_tried_again(root, models, monkeypatch, caplog):
    models_of = Repository.models

    def fail(repository):
        raise RuntimeError("can't start new thread")

    steps = [
        lambda: monkeypatch.setattr(Repository, "models", fail),
        lambda: models.write(root / "m", models.scale(3.0), 2),
        lambda: monkeypatch.setattr(Repository, "models", models_of),
    ]
    assert asyncio.run(polled(root, steps)) == (["m"], [])
    said = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert said == [
        "a look at the repository failed: RuntimeError: can't start new thread; the next one follows",
    ]


def test_a_load_that_fails_in_another_way_keeps_no_other_model_from_loading(root, models, caplog):
    def change():
        for name in ("m", "n"):
            models.write(root / name, models.scale(3.0), 2)

    assert asyncio.run(polled(root, [change], fails="m")) == (["m", "n"], [])
    assert "load 'm' failed" in caplog.text


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("error", [LoadHindered, LoadRefused])
def test_what_failed_for_a_reason_that_may_pass_is_tried_again(root, monkeypatch, caplog, error, asked):
    """A load that failed because of too little memory, or of a busy machine, was never tried again."""
    monkeypatch.setattr(polling, "SETTLED_SECONDS", 0.01)
    if not asked:
        monkeypatch.setattr(pauses, "FIRST_SECONDS", 0.0)
        monkeypatch.setattr(pauses, "TIMES_LOAD", 0)
    caplog.set_level(logging.INFO)
    loads, looks = [], []

    def load(data):
        loads.append(polling.pb.RepositoryModelLoadRequest.FromString(data).model_name)
        if len(loads) < 4:
            raise error("no memory")
        return b""

    async def scenario():
        one = Polling(Repository(root), Everything(), 0.0 if asked else 0.001)
        one.share([SimpleNamespace(answer=load), Asked()])
        await one.begin()
        look = one._changes.look
        one._changes.look = lambda: looks.append(None) or look()
        task = asyncio.create_task(one.run(["m"]))
        expected = 4 if error is LoadHindered else 1
        while len(loads) < expected or len(looks) < 8:
            if asked:
                one.look_now()
            await asyncio.sleep(0.001)
        task.cancel()
        return expected

    assert loads == ["m"] * asyncio.run(asyncio.wait_for(scenario(), 30))
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 1, said
    assert ("tried again" in said[0]) == (error is LoadHindered and not asked)


def test_nothing_is_tried_again_from_files_that_are_being_written(root, models):
    """A new try loaded a copy of which only half was there."""
    loads, catalog = [], Everything()

    async def scenario():
        one = Polling(Repository(root), catalog, 1.0)
        one.share([SimpleNamespace(answer=lambda data: loads.append(data) or b""), Asked()])
        await one.begin()
        catalog.hindered.names.add("m")
        await one._look(now=True)
        assert len(loads) == 1
        models.write(root / "m", b"", 2)
        for _ in range(3):
            await one._look(now=True)
        assert len(loads) == 1
        models.write(root / "m", models.scale(), 2)
        await one._look(now=True)
        assert len(loads) == 1
        catalog.hindered.names.clear()
        await one._look()
        assert len(loads) == 2

    asyncio.run(scenario())


def test_what_failed_is_not_tried_again_once_a_client_has_put_something_else_in_service(root):
    """SIGHUP loaded the folder in its place."""
    loads, catalog = [], Everything()

    def load(data):
        loads.append(data)
        raise LoadHindered("no memory")

    async def scenario():
        one = Polling(Repository(root), catalog, 0.0)
        one.share([SimpleNamespace(answer=load), Asked()])
        await one.begin()
        catalog.hindered.names.add("m")
        await one._look(now=True)
        with catalog.hindered.noted("m", sent=True):
            pass
        await one._look(now=True)
        assert len(loads) == 1

    asyncio.run(scenario())


def test_a_refresh_that_fails_is_tried_again(root, models):
    tries = iter(range(1000))

    def refresh():
        if next(tries) < 2:
            raise RuntimeError("can't start new thread")

    steps = [lambda: models.write(root / "m", models.scale(3.0), 2)]
    assert asyncio.run(polled(root, steps, refresh)) == (["m"], [])


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_model_that_cannot_be_looked_at_does_not_stop_the_others_at_the_start(root, away, number):
    async def start():
        config = ServerConfig(root, listen="127.0.0.1:0", load_seconds=0.0, model_control="poll")
        server = Server(config)
        away[root / "m"] = number
        await server.start()
        try:
            return server.models()
        finally:
            await server.shut_down()

    (m, loaded), (_, answers) = asyncio.run(start())
    assert (loaded, answers) == (False, True)
    assert m == f"m was not loaded: config.pbtxt cannot be read: {os.strerror(number)}"


@pytest.mark.parametrize("config", ["", "max_batch_size: 8"])
@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("names", [(), ("m",)])
def test_a_model_whose_folder_goes_and_comes_back_is_loaded_again(tmp_path, models, names, answers, config):
    def write(content):
        models.write(tmp_path / "m", content, 1, config or None)

    async def run():
        write(models.scale() if answers else b"no model")
        models.write(tmp_path / "other", models.scale())
        options = {"load_models": names, "load_seconds": 0.0, "model_control": "poll", "poll_seconds": 1e6}
        server = Server(ServerConfig(tmp_path, listen="127.0.0.1:0", **options))
        await server.start()

        async def looks():
            for _ in range(2):
                await server.polling._look()
            entry = server.catalog.entries.get("m")
            return entry and (entry.answering, entry.answered)

        try:
            assert await looks() == (((1,), True) if answers else ((), False))
            shutil.rmtree(tmp_path / "m")
            assert await looks() == (((), True) if answers else None), "what answered is remembered, nothing else"
            write(models.scale())
            assert await looks() == ((1,), True)
            shutil.rmtree(tmp_path / "other")
            await looks()
            models.write(tmp_path / "other", models.scale())
            await looks()
            assert ("other" in server.catalog.entries) is not bool(names), "the start left it out"
        finally:
            await server.shut_down()

    asyncio.run(run())


def test_a_model_that_a_worker_could_not_load_is_tried_again(root):
    load = Asked()
    one = Polling(Repository(root), Everything(), 0.001)
    one.share([load, Asked()])

    async def run():
        await one.begin()
        one.try_again(["n"])
        task = asyncio.create_task(one.run())
        async with asyncio.timeout(20):
            while not load.names:
                await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(run())
    assert load.names == ["n"]


def test_whoever_asks_for_a_look_is_told_when_what_has_changed_was_loaded(root, models, monkeypatch):
    monkeypatch.setattr(polling, "SETTLED_SECONDS", 0.001)
    told = []

    async def run():
        load = Asked()
        one = Polling(Repository(root), Everything(), 0.0)
        one.share([load, Asked()])
        await one.begin()
        models.write(root / "n", models.scale(3.0), 2)
        task = asyncio.create_task(one.run())
        one.look_now(lambda: told.append(list(load.names)))
        one.look_now()
        async with asyncio.timeout(20):
            while not told:
                await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(run())
    assert told == [["n"]]


def test_a_look_that_somebody_asked_for_says_that_it_found_nothing(root, monkeypatch, caplog):
    monkeypatch.setattr(polling, "SETTLED_SECONDS", 0.001)
    caplog.set_level(logging.INFO)
    told = asyncio.Event()

    async def run():
        one = Polling(Repository(root), Everything(), 0.001)
        await one.begin()
        await one._look()  # a look that nobody asked for
        task = asyncio.create_task(one.run())
        one.look_now(told.set)
        async with asyncio.timeout(20):
            await told.wait()
        task.cancel()

    asyncio.run(run())
    assert [r.message for r in caplog.records if "nothing has changed" in r.message] == [
        "SIGHUP: looked at the repository: nothing has changed, or what has is not whole yet"
    ]


@pytest.mark.parametrize("change", ["changed", "gone"])
def test_a_model_that_a_client_leaves_out_while_another_one_loads_stays_out(root, models, change):
    """It came back when its turn came."""

    async def run():
        left_out, asked = set(), []

        def answer(data):
            asked.append(polling.pb.RepositoryModelLoadRequest.FromString(data).model_name)
            left_out.add("n")
            return b""

        one = Polling(Repository(root), SimpleNamespace(follows=lambda name: name not in left_out), 0)
        one.share([SimpleNamespace(answer=answer)] * 2)
        await one.begin()
        for name in ("m", "n"):
            if change == "gone":
                shutil.rmtree(root / name)
            else:
                models.write(root / name, models.scale(3.0), 2)
        for _ in range(2):
            await one._look()
        return asked

    assert asyncio.run(run()) == ["m"]
