"""Whether a load may succeed later with the same files: its reason lies in them, or in the machine at that moment."""

from __future__ import annotations

import asyncio
import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from normfold.serving.catalog import loader, plain_files
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import DeviceUnavailable, Hindered, LoadHindered, LoadRefused, ServingError
from normfold.serving.runtime.devices import Device


@pytest.fixture
def catalog(tmp_path, models):
    models.write(tmp_path / "m", models.scale())
    with ThreadPoolExecutor(1) as executor:
        yield Catalog(Repository(tmp_path), LoadOptions(Device("cpu"), cpus=1, inline_seconds=1.0), executor)


def fails(error):
    def function(*_):
        raise error

    return function


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (plain_files, "_open", PermissionError(errno.EACCES, os.strerror(errno.EACCES))),
        (plain_files, "_open", OSError(errno.EIO, os.strerror(errno.EIO))),
        (loader, "load", MemoryError()),
        (loader, "load", ImportError("libcudnn.so.9: cannot open shared object file")),
        (loader, "load", Hindered("loading it took longer than 120 s")),
        (loader, "load", DeviceUnavailable("no GPU")),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_reason_that_may_pass_is_kept_until_the_model_loads(
    catalog, tmp_path, models, monkeypatch, module, name, error, version
):
    asyncio.run(catalog.load_all())
    models.write(tmp_path / "m", models.scale(3.0), version)
    with monkeypatch.context() as patched:
        patched.setattr(module, name, fails(error))
        with pytest.raises((LoadHindered, DeviceUnavailable)):
            asyncio.run(catalog.refresh("m"))
    assert catalog.hindered.names == {"m"}
    assert catalog.find("m", "")
    asyncio.run(catalog.refresh("m"))
    assert catalog.hindered.names == set()


@pytest.mark.parametrize("change", ["", "config", "golden", "model"])
def test_a_version_whose_files_have_not_changed_is_not_loaded_again(catalog, tmp_path, models, monkeypatch, change):
    """Each new try of another version, or of another worker, loaded it again, and its counters began anew."""
    policy = "version_policy { all {} }"
    models.write(tmp_path / "m", models.scale(), config=policy)
    asyncio.run(catalog.load_all())
    before = catalog.find("m", "")
    models.write(tmp_path / "m", models.scale(3.0), 2)
    if change == "config":
        (tmp_path / "m/config.pbtxt").write_text(f"{policy} max_batch_size: 4", encoding="utf-8")
    elif change == "golden":
        (tmp_path / "m/1/golden.json").write_text("no", encoding="utf-8")
    elif change == "model":
        models.write(tmp_path / "m", models.scale(5.0))
    with monkeypatch.context() as patched:
        loads = []
        patched.setattr(
            loader, "load", lambda folder, written, number, *_: loads.append(number) or fails(MemoryError())()
        )
        with pytest.raises(LoadRefused):
            asyncio.run(catalog.refresh("m"))
        assert loads == ([1, 2] if change else [2])
    if change != "golden":
        asyncio.run(catalog.refresh("m"))
        assert (catalog.find("m", "1") is before) == (not change)
        assert catalog.find("m", "2")


def test_a_model_that_could_not_be_loaded_at_the_start_is_one_of_them(catalog, monkeypatch):
    monkeypatch.setattr(loader, "load", fails(MemoryError()))
    asyncio.run(catalog.load_all())
    assert catalog.hindered.names == {"m"}


def test_what_a_client_sent_is_not_tried_again_from_the_folder(catalog, monkeypatch):
    """SIGHUP loaded the folder then, in the place of what a client had put in service before."""
    asyncio.run(catalog.load("m", override='{"max_batch_size": 2}'))
    monkeypatch.setattr(loader, "load", fails(MemoryError()))
    with pytest.raises(LoadHindered):
        asyncio.run(catalog.load("m", override='{"max_batch_size": 4}'))
    assert (catalog.hindered.names, catalog.hindered.sent) == (set(), {"m"})
    monkeypatch.undo()
    asyncio.run(catalog.load("m"))
    assert catalog.hindered.sent == set()


@pytest.mark.parametrize("damage", ["file", "config", "missing", "link"])
def test_what_lies_in_the_files_passes_only_with_other_files(catalog, tmp_path, models, damage):
    file = tmp_path / "m/1/model.onnx"
    if damage == "config":
        (tmp_path / "m/config.pbtxt").write_text("no {", encoding="utf-8")
    elif damage == "file":
        file.write_bytes(b"nothing")
    else:
        file.unlink()
        if damage == "link":
            file.symlink_to("model.onnx")
    with pytest.raises(ServingError) as caught:
        asyncio.run(catalog.load("m"))
    assert type(caught.value) is LoadRefused
    assert catalog.hindered.names == set()
