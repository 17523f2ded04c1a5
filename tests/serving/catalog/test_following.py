"""A catalog that follows other workers has what they have, whatever its repository has now."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from normfold.serving.catalog import loader
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.config import parse
from normfold.serving.catalog.following import served
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.repository import Repository
from normfold.serving.catalog.served import ServedModel
from normfold.serving.errors import LoadRefused, ServingError, StartError
from normfold.serving.runtime.devices import Device
from normfold.serving.server import Server
from normfold.serving.settings import ServerConfig


@pytest.fixture
def catalog(tmp_path, models):
    models.write(tmp_path / "m", models.scale())
    models.write(tmp_path / "n", models.scale())
    with ThreadPoolExecutor(1) as executor:
        yield lambda: Catalog(Repository(tmp_path), LoadOptions(Device("cpu"), cpus=1, inline_seconds=1.0), executor)


def states(catalog):
    return [(row.name, row.version, row.state) for row in catalog.index(False)]


def test_a_later_catalog_serves_what_the_first_one_serves(catalog, tmp_path, models):
    (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: 4", encoding="utf-8")
    first, later = catalog(), catalog()
    asyncio.run(first.load_all())
    models.write(tmp_path / "m", b"half a version", 2)
    models.write(tmp_path / "n", models.scale(9.0), 2, "max_batch_size: 8")
    (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: 16", encoding="utf-8")
    later.following.follow(served(first.entries))
    asyncio.run(later.load_all())
    assert states(later) == states(first) == [("m", "1", "READY"), ("n", "1", "READY")]
    assert later.find("m", "").config == first.find("m", "").config
    assert list(served(later.entries)) == list(served(first.entries))

    asyncio.run(later.load("n"))  # the others have it so already
    before = later.find("n", "1")
    asyncio.run(later.load("n"))
    assert later.find("n", "1") is before
    later.following.follow(None)
    asyncio.run(later.load("n"))
    assert later.find("n", "").version == 2


def test_one_configuration_is_the_same_bytes_in_every_worker(catalog, tmp_path):
    """protobuf writes a map in the order of its hash table, which is another one in each process."""
    tags = [f'metric_tags {{ key: "{n}" value: "v" }}' for n in range(40)]
    written = set()
    for text in (" ".join(tags), " ".join(tags[::-1])):
        (tmp_path / "m" / "config.pbtxt").write_text(text, encoding="utf-8")
        one = catalog()
        asyncio.run(one.load("m"))
        written.add(one.entries["m"].written)
    assert len(written) == 1


def served_during_a_load_that_fails(one, monkeypatch):
    """What ``one`` says that it serves while it loads "m"."""
    during = []

    async def load_versions(folder, written, numbers, *_):
        during.extend(served(one.entries))
        return {}, dict.fromkeys(numbers, "broken")

    monkeypatch.setattr(one._loader, "load_versions", load_versions)
    with pytest.raises(LoadRefused):
        asyncio.run(one.load("m"))
    return during


def test_a_model_that_failed_and_is_loaded_again_is_one_that_should_be_in_service(
    catalog, tmp_path, models, monkeypatch
):
    models.write(tmp_path / "m", b"no model")
    first, later = catalog(), catalog()
    asyncio.run(first.load_all())
    during = served_during_a_load_that_fails(first, monkeypatch)
    assert [(model.name, model.versions) for model in during] == [("m", ()), ("n", (1,))]
    later.following.follow(during)
    asyncio.run(later.load_all())
    later.following.end(later.entries)
    assert [row[::2] for row in states(later)] == [("m", "UNAVAILABLE"), ("n", "READY")]
    assert not later.loaded(strict=True)


def test_a_model_that_loads_for_the_first_time_is_not_yet_one_of_those_in_service(catalog, monkeypatch):
    assert served_during_a_load_that_fails(catalog(), monkeypatch) == []


def test_a_model_that_the_others_do_not_serve_has_their_reason(catalog):
    later = catalog()
    config = parse("").SerializeToString()
    later.following.follow([ServedModel("m", (), b"", "broken"), ServedModel("n", (1,), config, "")])
    asyncio.run(later.load_all())
    assert states(later) == [("m", "", "UNAVAILABLE"), ("n", "1", "READY")]
    assert later.entries["m"].reason == "the other workers do not serve it (broken)"
    assert not later.loaded(strict=True)
    with pytest.raises(LoadRefused):
        asyncio.run(later.load("m"))


def known(catalog):
    """What clients may learn of "m", served or not."""
    told = []
    for version in ("", "1", "2"):
        try:
            told.append(catalog.find("m", version).version)
        except ServingError as error:
            told.append((type(error), str(error)))
    return told, [row for row in catalog.index(False) if row.name == "m"], catalog.follows("m")


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_later_catalog_says_the_same_of_a_model_that_was_taken_out_of_service(
    catalog, tmp_path, models, deleted, leave_out
):
    first = catalog()
    asyncio.run(first.load_all())
    asyncio.run(first.unload("m", leave_out))
    if deleted:
        shutil.rmtree(tmp_path / "m")
    later = catalog()
    later.following.follow(served(first.entries))
    asyncio.run(later.load_all())
    asyncio.run(later.unload("m", leave_out))  # as the supervisor has it repeat this
    assert later.following.end(later.entries) == {}
    assert known(later) == known(first)
    assert [first.loaded(True), later.loaded(True)] == [True, True]
    assert list(served(later.entries)) == list(served(first.entries))


@pytest.mark.parametrize("version", [1, 2])
def test_a_later_catalog_says_the_same_of_a_version_that_cannot_be_loaded(catalog, tmp_path, models, version):
    first, later = catalog(), catalog()
    if version == 2:
        asyncio.run(first.load_all())
    models.write(tmp_path / "m", b"no model", version)
    if version == 2:
        with pytest.raises(LoadRefused):
            asyncio.run(first.load("m"))
    else:
        asyncio.run(first.load_all())
    later.following.follow(served(first.entries))
    asyncio.run(later.load_all())
    assert later.following.end(later.entries) == {}
    assert known(later) == known(first)
    assert later.loaded(True) == first.loaded(True) == (version == 2)


def test_a_version_that_is_gone_is_a_reason(catalog):
    later = catalog()
    later.following.follow([ServedModel("m", (7,), parse("").SerializeToString(), "")])
    asyncio.run(later.load_all())
    assert ("m", "7", "UNAVAILABLE") in states(later)


def test_what_the_others_do_not_serve_is_not_loaded(catalog, tmp_path, models):
    models.write(tmp_path / "broken", b"half a version")
    alone, later = catalog(), catalog()
    later.following.follow([ServedModel("m", (1,), parse("").SerializeToString(), "")])
    asyncio.run(later.load_all())
    assert [row for row in states(later) if row[2]] == [("m", "1", "READY")]
    assert later.loaded(strict=True)
    asyncio.run(later.unload("n", leave_out=True))  # as a client had the others do
    assert later.following.end(later.entries) == {}
    assert states(later) == [("m", "1", "READY"), ("n", "", "UNAVAILABLE")]
    assert not later.follows("n")
    assert later.loaded(strict=True)
    asyncio.run(alone.load_all())
    assert not alone.loaded(strict=True)


def test_others_that_serve_nothing_are_not_the_same_as_no_others(catalog):
    later = catalog()
    later.following.follow(())
    asyncio.run(later.load_all())
    assert later.following.behind(later._sources._repository) == ["m", "n"]
    assert later.following.end(later.entries) == {}
    assert states(later) == []


def test_one_of_several_versions_that_is_gone_is_missed(catalog, tmp_path, models):
    models.write(tmp_path / "m", models.scale(3.0), 2)
    later = catalog()
    later.following.follow([ServedModel("m", (1, 2), parse("").SerializeToString(), "")])
    (tmp_path / "m/1/model.onnx").unlink()
    asyncio.run(later.load_all())
    assert later.find("m", "").version == 2
    (sentence,) = later.following.end(later.entries).values()
    assert sentence.startswith("'m' version 1, which the other workers serve, cannot be loaded (version 1: ")


def test_a_version_that_was_overwritten_in_place_is_not_served_beside_the_first_one(catalog, tmp_path, models):
    first, later, last = catalog(), catalog(), catalog()
    asyncio.run(first.load_all())
    models.write(tmp_path / "m", models.scale(9.0))
    later.following.follow(served(first.entries))
    asyncio.run(later.load_all())
    (sentence,) = later.following.end(later.entries).values()
    assert sentence.startswith("'m' version 1 has changed on disk since the other workers loaded it: load the model")

    asyncio.run(first.load("m"))
    last.following.follow(served(first.entries))
    asyncio.run(last.load_all())
    assert last.following.end(last.entries) == {}


def test_a_load_of_all_workers_is_repeated_where_this_one_has_read_the_files_before(catalog, tmp_path, models):
    first, later = catalog(), catalog()
    asyncio.run(first.load_all())
    later.following.follow(served(first.entries))
    asyncio.run(later.load_all())
    models.write(tmp_path / "m", models.scale(9.0))
    asyncio.run(first.load("m"))
    later.following.follow(served(first.entries))
    for name in ("m", "n"):
        before = later.find(name, "")
        asyncio.run(later.load(name))
        assert (later.find(name, "") is before) == (name == "n")
    assert later.following.end(later.entries) == {}


def test_whatever_the_files_are_now_is_served_where_nobody_answers_from_the_old_ones(catalog, tmp_path, models):
    first, later = catalog(), catalog()
    asyncio.run(first.load_all())
    models.write(tmp_path / "m", models.scale(9.0))
    later.following.follow([dataclasses.replace(model, digests=()) for model in served(first.entries)])
    asyncio.run(later.load_all())
    assert later.following.end(later.entries) == {}


def test_a_worker_that_starts_again_does_without_a_model_that_is_gone(tmp_path, models):
    models.write(tmp_path / "m", models.scale())
    config = ServerConfig(tmp_path, load_models=("gone", "m"))
    with pytest.raises(StartError, match="there is no model 'gone' to load"):
        Server(config)
    catalog = Server(config, again=True).catalog
    assert list(catalog.entries) == ["m"]
    assert catalog.follows("gone")


def test_a_worker_that_starts_again_is_as_ready_as_the_others_which_serve_nothing_any_more(tmp_path, models):
    models.write(tmp_path / "m", models.scale())
    config = ServerConfig(tmp_path)
    first = Server(config).catalog
    asyncio.run(first.load_all())
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(StartError, match="holds no model"):
        Server(config)
    asyncio.run(first.unload("m"))
    assert first.loaded(strict=True)
    later = Server(config, again=True).catalog
    later.following.follow(served(first.entries))
    asyncio.run(later.load_all())
    assert later.following.end(later.entries) == {}
    assert later.loaded(strict=True)


@pytest.mark.parametrize(
    ("damage", "failing"), [("new version", (2,)), ("file", (0, 1)), ("config", (0,)), ("unloaded", ()), ("", ())]
)
def test_a_report_says_which_versions_fail_to_load(catalog, tmp_path, models, damage, failing):
    if damage == "file":
        models.write(tmp_path / "m", b"nothing")
    elif damage == "config":
        (tmp_path / "m" / "config.pbtxt").write_text("no {", encoding="utf-8")
    one = catalog()
    asyncio.run(one.load_all())
    if damage == "unloaded":
        asyncio.run(one.unload("m", leave_out=True))
    elif damage == "new version":
        models.write(tmp_path / "m", b"nothing", 2)
        with pytest.raises(LoadRefused):
            asyncio.run(one.load("m"))
    assert {each.name: each.failing for each in served(one.entries)} == {"m": failing, "n": ()}


def test_what_failed_still_fails_while_it_is_loaded_again(catalog, tmp_path, models, monkeypatch):
    """It was ready through a worker that had it while another tried again to load it."""
    models.write(tmp_path / "m", b"nothing")
    one, reports, real = catalog(), [], loader.load

    def load(*arguments):
        reports.extend(each.failing for each in served(one.entries) if each.name == "m")
        return real(*arguments)

    asyncio.run(one.load_all())
    monkeypatch.setattr(loader, "load", load)
    for _ in range(2):
        with pytest.raises(LoadRefused):
            asyncio.run(one.load("m"))
    models.write(tmp_path / "m", models.scale())
    asyncio.run(one.load("m"))
    assert reports == [(0, 1)] * 3
    assert one.entries["m"].failing == ()
