"""A model that is replaced is never lost, also on a file system that cannot exchange two directories (NFS, FUSE)."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from normfold.export.errors import PublishError
from normfold.export.inputs.specs import parse_inputs
from normfold.export.publishing import publish as module
from normfold.export.publishing.aside import exchange, put_back, remove_stale
from normfold.export.publishing.config import OutputSpec, render_config
from normfold.export.publishing.destination import Destination
from normfold.export.publishing.publish import Publication, publish
from normfold.protos.datatypes import by_name
from normfold.serving.catalog.repository import Repository

DAYS_AGO = time.time() - 2 * 86400
HEX = "0123456789abcdef" * 2


def published(
    repository: Path, name: str, content: bytes, labels: bytes = b"a\nb\n", version: int | None = None
) -> Path:
    outputs = (OutputSpec("y", by_name("FP32"), ("N", 2)),)
    config = render_config(name, parse_inputs(["x=FP32[N,3,L]"]), outputs, "y", {"N": 2, "L": 8}).encode()
    model_files = {"config.pbtxt": config, "labels.txt": labels}
    publication = Publication(name, model_files, {"model.onnx": content})
    return publish(repository, publication, version, overwrite=version is not None)


def graphs(repository: Path) -> dict[str, bytes]:
    """The graphs of the models that are there, by model and version."""
    return {
        str(p.parent.relative_to(repository)): p.read_bytes()
        for p in repository.rglob("model.onnx")
        if ".tmp-" not in str(p)
    }


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two versions of a model that were published days ago, where directories cannot be exchanged."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **keywords: SimpleNamespace())
    published(tmp_path, "net", b"one")
    published(tmp_path, "net", b"two")
    for path in (tmp_path / "net" / "1", tmp_path / "net" / "2", tmp_path / "net"):
        os.utime(path, (DAYS_AGO, DAYS_AGO))
    return tmp_path


def killed_after_rename(number: int, action: Callable[[], object]) -> None:
    """Run ``action`` in a child that dies after its ``number``-th rename of a directory that is being exchanged."""
    child = os.fork()
    if child == 0:
        honest, seen = Path.rename, 0

        def rename(path: Path, target: Path) -> Path:
            nonlocal seen
            moved = honest(path, target)
            seen += 1
            if seen == number:
                os._exit(9)
            return moved

        Path.rename = rename  # type: ignore[method-assign, assignment]
        try:
            action()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_other_labels_and_an_overwrite_work_by_renames_and_leave_nothing(repository: Path) -> None:
    published(repository, "net", b"three", labels=b"c\nd\n")
    published(repository, "net", b"new", labels=b"c\nd\n", version=1)
    assert graphs(repository) == {"net/1": b"new", "net/2": b"two", "net/3": b"three"}
    assert not list(repository.rglob(".tmp-*"))


def test_a_model_that_a_killed_export_set_aside_is_put_back_by_the_next_export_of_any_model(repository: Path) -> None:
    killed_after_rename(1, lambda: published(repository, "net", b"three", labels=b"c\nd\n"))
    assert graphs(repository) == {}
    published(repository, "another", b"graph")
    assert graphs(repository) == {"net/1": b"one", "net/2": b"two", "another/1": b"graph"}


@pytest.mark.parametrize("behind", ["net", "net @ 3"])
def test_a_model_behind_a_link_that_a_killed_export_set_aside_is_put_back_by_the_next_export_of_the_model(
    repository: Path, behind: str
) -> None:
    shelf = repository / "shelf"
    shelf.mkdir()
    (repository / "net").rename(shelf / behind)
    (repository / "net").symlink_to(shelf / behind)
    killed_after_rename(1, lambda: published(repository, "net", b"three", labels=b"c\nd\n"))
    (left,) = shelf.glob(".tmp-*-old")
    os.utime(left, (DAYS_AGO, DAYS_AGO))
    published(shelf, "another", b"graph")  # the only copy of the model is not removed, however old it is
    assert published(repository, "net", b"three") == repository / "net" / "3"
    assert (repository / "net").is_symlink()
    assert graphs(shelf) == {
        f"{behind}/1": b"one",
        f"{behind}/2": b"two",
        f"{behind}/3": b"three",
        "another/1": b"graph",
    }


def test_an_export_through_a_link_waits_for_one_into_what_the_link_leads_to(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = repository / "other"
    other.mkdir()
    (other / "net").symlink_to(repository / "net")
    locked: list[Path] = []

    @contextmanager
    def alone_in(folder: Path, waiting: object) -> Iterator[None]:
        locked.append(folder)
        yield

    monkeypatch.setattr(module, "alone_in", alone_in)
    published(other, "net", b"three")
    published(repository, "net", b"four")
    assert locked == [repository, repository]


def test_a_version_that_a_killed_overwrite_set_aside_is_put_back_by_the_next_export_of_the_model(
    repository: Path,
) -> None:
    killed_after_rename(1, lambda: published(repository, "net", b"new", version=1))
    assert graphs(repository) == {"net/2": b"two"}
    assert published(repository, "net", b"three").name == "3"
    assert graphs(repository) == {"net/1": b"one", "net/2": b"two", "net/3": b"three"}


def test_killed_after_the_second_rename_the_new_model_is_there_and_the_old_one_goes_once_it_is_old(
    repository: Path,
) -> None:
    killed_after_rename(2, lambda: published(repository, "net", b"three", labels=b"c\nd\n"))
    assert graphs(repository) == {"net/1": b"one", "net/2": b"two", "net/3": b"three"}
    (left,) = repository.glob(".tmp-*-net-old")
    published(repository, "another", b"graph")
    assert left.exists(), "it was made aside a moment ago: its export may still be at work"
    os.utime(left, (DAYS_AGO, DAYS_AGO))
    published(repository, "another", b"graph")
    assert not left.exists()
    assert graphs(repository)["net/3"] == b"three"


@pytest.mark.parametrize("version", [None, 1], ids=["other labels", "an overwrite"])
def test_a_second_rename_that_fails_leaves_everything_as_it_was(
    repository: Path, monkeypatch: pytest.MonkeyPatch, version: int | None
) -> None:
    before, honest = graphs(repository), Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.name.startswith(".tmp-") and not path.name.endswith("-old"):
            raise OSError(5, "Input/output error")
        return honest(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PublishError, match="Input/output error"):
        published(repository, "net", b"new", labels=b"a\nb\n" if version else b"c\nd\n", version=version)
    assert graphs(repository) == before
    assert not list(repository.rglob(".tmp-*"))


def test_what_was_put_back_is_said_with_its_place(repository: Path) -> None:
    (repository / "net").rename(repository / f".tmp-{HEX}-net-old")
    destination = Destination(repository, "net")
    assert put_back(destination) == (
        f"'{repository / 'net'}' was put back: an earlier export was stopped while it replaced it, and had left it as "
        f"'.tmp-{HEX}-net-old'",
    )
    assert put_back(destination) == ()
    assert set(graphs(repository)) == {"net/1", "net/2"}


def test_what_was_set_aside_is_never_swept_while_nothing_is_in_its_place(tmp_path: Path) -> None:
    old = [tmp_path / f".tmp-{HEX}-net-old", tmp_path / f".tmp-{HEX}-old", tmp_path / f".tmp-{HEX}"]
    for path in old:
        path.mkdir()
        os.utime(path, (DAYS_AGO, DAYS_AGO))
    remove_stale(tmp_path)
    assert [path.exists() for path in old] == [True, True, False]


def test_what_no_export_has_written_is_never_swept(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (".tmp-backup", f".tmp-{HEX}-net", f".tmp-{HEX.upper()}")]
    for path in kept:
        path.mkdir()
        (path / "notes.txt").write_text("")
        os.utime(path, (DAYS_AGO, DAYS_AGO))
    remove_stale(tmp_path)
    assert [sorted(path.iterdir()) for path in kept] == [[path / "notes.txt"] for path in kept]


def test_the_age_of_a_replaced_version_begins_when_it_was_replaced(tmp_path: Path) -> None:
    """Here by renameat2: between the exchange and the end of the export, another export sees the old model."""
    published(tmp_path, "net", b"one")
    os.utime(tmp_path / "net", (DAYS_AGO, DAYS_AGO))
    killed = tmp_path / f".tmp-{HEX}"
    killed.mkdir()
    exchange(killed, tmp_path / "net")
    published(tmp_path, "another", b"graph")
    assert (killed / "1" / "model.onnx").read_bytes() == b"one"


def test_a_server_does_not_see_what_was_set_aside(repository: Path) -> None:
    (repository / "net" / "2").rename(repository / "net" / f".tmp-{HEX}-2-old")
    published(repository, "another", b"graph")
    (repository / "another").rename(repository / f".tmp-{HEX}-another-old")
    served = Repository(repository)
    assert {name: folder.versions() for name, folder in served.models().items()} == {"net": [1]}
