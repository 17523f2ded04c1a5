from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from normfold import whole_file
from normfold.export.errors import PublishError
from normfold.export.inputs.specs import parse_inputs
from normfold.export.publishing import publish as module
from normfold.export.publishing.config import OutputSpec, render_config
from normfold.export.publishing.destination import Destination
from normfold.export.publishing.publish import Publication, publish
from normfold.protos.config_text import parse_config
from normfold.protos.datatypes import by_name


def config(inputs: str = "x=FP32[N,3,L]") -> bytes:
    outputs = (OutputSpec("y", by_name("FP32"), ("N", 2)),)
    return render_config("net", parse_inputs([inputs]), outputs, None, {"N": 2, "L": 8}).encode()


def publication(content: bytes = b"graph", **model_files: bytes) -> Publication:
    files = {"config.pbtxt": config(), **{k.replace("_", "."): v for k, v in model_files.items()}}
    return Publication("net", files, {"model.onnx": content, "export.json": b"{}" + content})


def whole(version: Path) -> Mapping[str, bytes]:
    """Return the files of a version after checking them against its manifest."""
    entries = json.loads((version / "manifest.json").read_text())["files"]
    contents = {p.name: p.read_bytes() for p in version.iterdir() if p.name != "manifest.json"}
    assert set(entries) == set(contents)
    for name, content in contents.items():
        assert entries[name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return contents


def test_a_first_version_has_its_files_its_config_and_a_manifest(tmp_path: Path) -> None:
    path = publish(tmp_path / "deep" / "repository", publication(labels_txt=b"a\nb\n"))
    assert path == tmp_path / "deep" / "repository" / "net" / "1"
    assert whole(path) == {"model.onnx": b"graph", "export.json": b"{}graph"}
    assert sorted(p.name for p in path.parent.iterdir()) == ["1", "config.pbtxt", "labels.txt"]


def test_a_wait_for_another_process_is_in_the_log_also_where_no_terminal_shows_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_file, "PATIENCE_SECONDS", 0.0)
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    said: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda why: said.append(why) or os.close(other))
    publish(tmp_path, publication())
    assert [why.partition(",")[2] for why in said] == [f" which writes in '{tmp_path}'"]


def test_versions_count_up_and_an_existing_one_needs_overwrite(tmp_path: Path) -> None:
    assert [publish(tmp_path, publication()).name for _ in range(3)] == ["1", "2", "3"]
    assert publish(tmp_path, publication(), version=7).name == "7"
    assert publish(tmp_path, publication()).name == "8"
    with pytest.raises(PublishError, match=r"'.*7' exists; leave --version out for the next free one \(9\)"):
        publish(tmp_path, publication(b"other"), version=7)
    assert whole(tmp_path / "net" / "7")["model.onnx"] == b"graph"
    publish(tmp_path, publication(b"other"), version=7, overwrite=True)
    assert whole(tmp_path / "net" / "7")["model.onnx"] == b"other"
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize(
    "name", ["", "..", ".", "../up", "a/b", "/etc", "a\\b", "a\nb", "a\x00b", "-rf", ".hidden", "a" * 129, "ä", "a..b"]
)
def test_a_name_that_could_leave_the_repository_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PublishError, match="cannot be a model's name"):
        publish(tmp_path / "repository", Publication(name, {}, {"model.onnx": b""}))
    assert not (tmp_path / "repository").exists()


def test_a_tuned_config_of_the_same_inputs_is_kept(tmp_path: Path) -> None:
    publish(tmp_path, publication())
    tuned = config().replace(b"max_batch_size: 64", b"max_batch_size: 8") + b"instance_group { count: 2 }\n"
    (tmp_path / "net" / "config.pbtxt").write_bytes(tuned)
    assert publish(tmp_path, publication()).name == "2"
    assert (tmp_path / "net" / "config.pbtxt").read_bytes() == tuned


def test_other_inputs_under_a_name_in_use_are_refused_line_by_line_unless_only_the_replaced_version_has_them(
    tmp_path: Path,
) -> None:
    publish(tmp_path, publication())
    changed = Publication("net", {"config.pbtxt": config("x=FP32[N,4,L]")}, {"model.onnx": b"new"})
    with pytest.raises(PublishError, match=r"another config\.pbtxt, which version 1 of it uses:") as refused:
        publish(tmp_path, changed)
    assert str(refused.value).splitlines()[1:] == [
        "  input 'x': FP32[-1,3,-1] there, FP32[-1,4,-1] in this export",
        "  publish under another --name, or replace it with --version 1 --overwrite",
    ]
    with pytest.raises(PublishError, match="under another --name"):
        publish(tmp_path, changed, version=2, overwrite=True)
    publish(tmp_path, changed, version=1, overwrite=True)
    assert whole(tmp_path / "net" / "1") == {"model.onnx": b"new"}
    assert b"dims: 4" in (tmp_path / "net" / "config.pbtxt").read_bytes()


def test_a_replaced_model_keeps_the_files_that_no_export_wrote(tmp_path: Path) -> None:
    publish(tmp_path, publication())
    (tmp_path / "net" / "README.md").write_text("how it was trained")
    (tmp_path / "net" / "warmup").mkdir()
    (tmp_path / "net" / "warmup" / "x").write_bytes(b"data")
    changed = Publication("net", {"config.pbtxt": config("x=FP32[N,4,L]")}, {"model.onnx": b"new"})
    publish(tmp_path, changed, version=1, overwrite=True)
    assert whole(tmp_path / "net" / "1") == {"model.onnx": b"new"}
    assert (tmp_path / "net" / "README.md").read_text() == "how it was trained"
    assert (tmp_path / "net" / "warmup" / "x").read_bytes() == b"data"
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["1", "README.md", "config.pbtxt", "warmup"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_model_is_refused_and_kept(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "network.py").write_text("class Net: ...")
    (tmp_path / "net" / "train.py").write_text("")
    with pytest.raises(PublishError, match=r"no model's directory: it holds 'network\.py' and 1 more but no config"):
        publish(tmp_path, publication(), version=1, overwrite=overwrite)
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == ["network.py", "train.py"]
    assert (tmp_path / "net" / "network.py").read_text() == "class Net: ..."


def test_a_folder_that_is_empty_but_for_hidden_files_becomes_the_model_and_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / ".gitkeep").write_text("")
    publish(tmp_path, publication())
    assert sorted(p.name for p in (tmp_path / "net").iterdir()) == [".gitkeep", "1", "config.pbtxt"]


def labelled(content: bytes, labels: bytes) -> Publication:
    """A version whose output 'y' has labels."""
    outputs = (OutputSpec("y", by_name("FP32"), ("N", 2)),)
    text = render_config("net", parse_inputs(["x=FP32[N,3,L]"]), outputs, "y", {"N": 2, "L": 8})
    return Publication("net", {"config.pbtxt": text.encode(), "labels.txt": labels}, {"model.onnx": content})


def test_a_new_version_changes_the_labels_of_the_model_and_leaves_everything_else(tmp_path: Path) -> None:
    publish(tmp_path, publication(b"old"))
    tuned = b"# tuned by Ann\n" + config().replace(b"max_batch_size: 64", b"max_batch_size: 8")
    (tmp_path / "net" / "config.pbtxt").write_bytes(tuned)
    (tmp_path / "net" / "config.pbtxt").chmod(0o600)
    (tmp_path / "net" / "warmup").mkdir()
    (tmp_path / "net" / "warmup" / "x").write_bytes(b"data")
    assert publish(tmp_path, labelled(b"new", b"a\nb\n")).name == "2"
    assert {v: whole(tmp_path / "net" / v)["model.onnx"] for v in "12"} == {"1": b"old", "2": b"new"}
    text = (tmp_path / "net" / "config.pbtxt").read_bytes()
    assert text == tuned.replace(b'name: "y"', b'name: "y" label_filename: "labels.txt"')
    assert stat.S_IMODE((tmp_path / "net" / "config.pbtxt").stat().st_mode) == 0o600
    assert (tmp_path / "net" / "labels.txt").read_bytes() == b"a\nb\n"
    assert (tmp_path / "net" / "warmup" / "x").read_bytes() == b"data"
    publish(tmp_path, labelled(b"newer", b"c\nd\n"), version=2, overwrite=True)
    assert {v: whole(tmp_path / "net" / v)["model.onnx"] for v in "12"} == {"1": b"old", "2": b"newer"}
    assert (tmp_path / "net" / "labels.txt").read_bytes() == b"c\nd\n"
    assert (tmp_path / "net" / "config.pbtxt").read_bytes() == text
    assert publish(tmp_path, publication()).name == "3"
    assert (tmp_path / "net" / "labels.txt").read_bytes() == b"c\nd\n", "an export without labels keeps them"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net"]


def test_a_link_to_a_model_stays_a_link_and_the_model_behind_it_changes(tmp_path: Path) -> None:
    publish(tmp_path / "shelf", publication(b"old"))
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "net").symlink_to(tmp_path / "shelf" / "net")
    path = publish(tmp_path / "repository", labelled(b"new", b"a\nb\n"))
    assert path == tmp_path / "repository" / "net" / "2"
    assert whole(path) == {"model.onnx": b"new"}
    assert sorted(p.name for p in (tmp_path / "shelf" / "net").iterdir()) == ["1", "2", "config.pbtxt", "labels.txt"]
    assert (tmp_path / "repository" / "net").is_symlink()
    assert [p.name for folder in ("shelf", "repository") for p in (tmp_path / folder).iterdir()] == ["net", "net"]


@pytest.mark.parametrize("what", ["link", "file"])
def test_a_link_or_a_file_in_the_place_of_a_version_is_replaced_and_gone(tmp_path: Path, what: str) -> None:
    publish(tmp_path / "repository", publication(b"old"))
    version = tmp_path / "repository" / "net" / "1"
    version.rename(tmp_path / "behind")
    version.symlink_to(tmp_path / "behind") if what == "link" else version.write_bytes(b"")
    publish(tmp_path / "repository", publication(b"new"), version=1, overwrite=True)
    assert whole(version)["model.onnx"] == b"new"
    assert not version.is_symlink()
    assert whole(tmp_path / "behind")["model.onnx"] == b"old"
    assert sorted(p.name for p in version.parent.iterdir()) == ["1", "config.pbtxt"]


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot lock a directory."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(whole_file.fcntl, "flock", refuse)


@pytest.mark.usefixtures("unlocked")
def test_a_version_that_another_export_adds_while_labels_change_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, publication(b"old"))
    honest = module.exchange

    def late(new: Path, old: Path) -> None:
        monkeypatch.setattr(module, "exchange", honest)
        publish(tmp_path, publication(b"other"), version=7)
        honest(new, old)

    monkeypatch.setattr(module, "exchange", late)
    publish(tmp_path, labelled(b"new", b"a\nb\n"))
    assert {v: whole(tmp_path / "net" / v)["model.onnx"] for v in "127"} == {"1": b"old", "2": b"new", "7": b"other"}


@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize("version", [None, 2])
def test_a_number_that_another_export_takes_meanwhile_stays_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int | None
) -> None:
    publish(tmp_path, publication(b"old"))
    honest = module._write_version

    def late(directory: Path, files: Mapping[str, bytes]) -> None:
        monkeypatch.setattr(module, "_write_version", honest)
        publish(tmp_path, publication(b"other"))
        honest(directory, files)

    monkeypatch.setattr(module, "_write_version", late)
    if version is None:
        assert publish(tmp_path, publication(b"late")).name == "3"
        assert whole(tmp_path / "net" / "3")["model.onnx"] == b"late"
    else:
        with pytest.raises(PublishError, match=r"'.*net/2' exists"):
            publish(tmp_path, publication(b"late"), version=version)
    assert whole(tmp_path / "net" / "2")["model.onnx"] == b"other"


def test_two_exports_at_once_that_change_the_labels_are_two_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, publication(b"old"))
    honest = module.exchange
    other = threading.Thread(target=publish, args=(tmp_path, labelled(b"other", b"c\nd\n")))

    def late(new: Path, old: Path) -> None:
        monkeypatch.setattr(module, "exchange", honest)
        other.start()
        other.join(0.2)  # it waits for this export; else it would be done by now
        honest(new, old)

    monkeypatch.setattr(module, "exchange", late)
    publish(tmp_path, labelled(b"new", b"a\nb\n"))
    other.join()
    assert {v: whole(tmp_path / "net" / v)["model.onnx"] for v in "123"} == {"1": b"old", "2": b"new", "3": b"other"}
    assert (tmp_path / "net" / "labels.txt").read_bytes() == b"c\nd\n"


@pytest.mark.usefixtures("unlocked")
def test_two_first_exports_of_one_name_at_once_are_two_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = module._publish_model

    def late(destination: Destination, publication_: Publication) -> Path:
        monkeypatch.setattr(module, "_publish_model", honest)
        publish(tmp_path, publication(b"other"))
        return honest(destination, publication_)

    monkeypatch.setattr(module, "_publish_model", late)
    assert publish(tmp_path, publication(b"late")).name == "2"
    assert {v: whole(tmp_path / "net" / v)["model.onnx"] for v in "12"} == {"1": b"other", "2": b"late"}


def test_a_repository_that_cannot_be_written_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match="cannot be created"):
        publish(tmp_path / "file" / "repository", publication())
    (tmp_path / "net").write_text("")
    with pytest.raises(PublishError, match="is a file"):
        publish(tmp_path, publication())


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        publish(tmp_path / "repository", publication())
    assert not (tmp_path / "repository").exists()
    assert not hasattr(stop.value, "__notes__")


@pytest.mark.parametrize("how", ["first version", "next version", "with labels", "overwritten"])
def test_an_interrupt_after_the_rename_says_that_the_version_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    number = 1 if how in ("first version", "overwritten") else 2
    new = publication(b"new", labels_txt=b"a\n") if how == "with labels" else publication(b"new")
    if how != "first version":
        publish(tmp_path, publication())
    version, sync = tmp_path / "net" / str(number), os.fsync

    def pressed(descriptor: int) -> None:
        sync(descriptor)
        if version.exists() and (version / "model.onnx").read_bytes() == b"new":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", pressed)
    with pytest.raises(KeyboardInterrupt) as stop:
        publish(tmp_path, new, version=number, overwrite=how == "overwritten")
    assert stop.value.__notes__ == [f"'{version}' is published"]
    assert whole(version)["model.onnx"] == b"new"
    assert not list(tmp_path.rglob(".tmp-*"))


def test_an_interrupt_while_the_old_version_is_removed_says_that_the_new_one_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(path: Path, **options: bool) -> None:
        raise KeyboardInterrupt

    publish(tmp_path, publication())
    monkeypatch.setattr(shutil, "rmtree", pressed)
    with pytest.raises(KeyboardInterrupt) as stop:
        publish(tmp_path, publication(b"new"), version=1, overwrite=True)
    assert stop.value.__notes__ == [f"'{tmp_path / 'net' / '1'}' is published"]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PublishError, match="No space left"):
        publish(tmp_path / "repository", publication())
    assert not (tmp_path / "repository").exists()


def test_left_overs_of_a_killed_export_are_removed_once_they_are_old(tmp_path: Path) -> None:
    publish(tmp_path, publication())
    old, young = (tmp_path / "net" / f".tmp-{digit * 32}" for digit in "01")
    for path in (old, young):
        path.mkdir()
        (path / "model.onnx").write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    publish(tmp_path, publication())
    assert not old.exists()
    assert young.exists()


def _killed_at(step: int, repository: Path, made: Publication, overwrite: bool) -> bool:
    """Publish in a child that dies at its ``step``-th call to the file system; return whether it finished."""
    child = os.fork()
    if child == 0:
        seen = 0
        fsync = os.fsync

        def count(event: str, arguments: object = ()) -> None:
            nonlocal seen
            if event in (
                "open",
                "fsync",
                "os.mkdir",
                "os.link",
                "os.rename",
                "os.remove",
                "os.rmdir",
                "ctypes.call_function",
                "os.listdir",
            ):
                seen += 1
                if seen == step:
                    os._exit(9)

        def counted(descriptor: int) -> None:
            count("fsync")
            fsync(descriptor)

        os.fsync = counted
        sys.addaudithook(count)
        try:
            publish(repository, made, version=1 if overwrite else None, overwrite=overwrite)
        except BaseException:
            os._exit(3)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 0


@pytest.mark.parametrize("overwrite", [False, True], ids=["a new version", "a version overwritten"])
def test_killed_at_every_step_a_reader_finds_whole_versions_only(tmp_path: Path, overwrite: bool) -> None:
    step, done = 0, False
    while not done:
        step += 1
        repository = tmp_path / str(step)
        publish(repository, publication(b"old"))
        done = _killed_at(step, repository, publication(b"new"), overwrite)
        versions = {p.name: whole(p)["model.onnx"] for p in (repository / "net").iterdir() if p.name.isdigit()}
        if overwrite:
            assert versions in ({"1": b"old"}, {"1": b"new"})
        else:
            assert versions in ({"1": b"old"}, {"1": b"old", "2": b"new"})
        assert parse_config((repository / "net" / "config.pbtxt").read_text())
        others = [p.name for p in (repository / "net").iterdir() if p.name not in versions]
        assert all(n == "config.pbtxt" or n.startswith(".tmp-") for n in others)
    assert versions["1" if overwrite else "2"] == b"new"
    assert step > 12


def test_killed_at_every_step_labels_and_version_change_together(tmp_path: Path) -> None:
    step, done = 0, False
    while not done:
        step += 1
        repository = tmp_path / str(step)
        publish(repository, publication(b"old"))
        done = _killed_at(step, repository, labelled(b"new", b"a\nb\n"), overwrite=False)
        versions = {p.name: whole(p)["model.onnx"] for p in (repository / "net").iterdir() if p.name.isdigit()}
        named = b"label_filename" in (repository / "net" / "config.pbtxt").read_bytes()
        found = (versions, named, (repository / "net" / "labels.txt").exists())
        assert found in (({"1": b"old"}, False, False), ({"1": b"old", "2": b"new"}, True, True))
    assert versions["2"] == b"new"
    assert step > 20


def test_killed_at_every_step_a_first_publish_shows_the_whole_model_or_none(tmp_path: Path) -> None:
    step, done = 0, False
    while not done:
        step += 1
        repository = tmp_path / str(step)
        done = _killed_at(step, repository, publication(b"new"), overwrite=False)
        if (repository / "net").exists():
            assert whole(repository / "net" / "1")["model.onnx"] == b"new"
            assert (repository / "net" / "config.pbtxt").is_file()
    assert (repository / "net").exists()


def test_the_config_says_what_a_server_needs_in_tritons_words() -> None:
    outputs = (OutputSpec("logits", by_name("FP32"), ("N", 18)), OutputSpec("length", by_name("INT64"), ("N",)))
    text = render_config("net", parse_inputs(["x=FP32[N:1..16,77,L]"]), outputs, "logits", {"N": 2, "L": 17})
    parsed = parse_config(text)
    assert (parsed.name, parsed.backend, parsed.max_batch_size) == ("net", "onnxruntime", 16)
    assert [(i.name, list(i.dims)) for i in parsed.input] == [("x", [77, -1])]
    assert [(o.name, list(o.dims), o.label_filename) for o in parsed.output] == [
        ("logits", [18], "labels.txt"),
        ("length", [], ""),
    ]
    assert parsed.HasField("dynamic_batching")
    assert [w.batch_size for w in parsed.model_warmup] == [1, 8]
    assert re.search(r"data_type: TYPE_FP32", text)


def test_without_a_common_batch_dimension_every_dimension_is_named_and_there_is_no_batching() -> None:
    for inputs, output, dims, warm in (
        ("x=FP32[3,L]", ("L",), [3, -1], [3, 4]),
        ("x=INT64[N,3]", (2,), [-1, 3], [2, 3]),
    ):
        outputs = (OutputSpec("y", by_name("FP32"), output),)
        parsed = parse_config(render_config("net", parse_inputs([inputs]), outputs, None, {"L": 4, "N": 2}))
        assert parsed.max_batch_size == 0
        assert not parsed.HasField("dynamic_batching")
        assert list(parsed.input[0].dims) == dims
        (warm_up,) = parsed.model_warmup
        assert (warm_up.name, warm_up.batch_size, list(warm_up.inputs["x"].dims)) == ("one request", 1, warm)
        # A random index could be outside of an embedding.
        assert warm_up.inputs["x"].WhichOneof("input_data_type") == ("zero_data" if "INT" in inputs else "random_data")
