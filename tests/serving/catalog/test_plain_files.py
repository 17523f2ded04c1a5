"""Only plain files of the repository itself are read; what cannot be read is the reason of its own model alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import shutil

import grpc
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.catalog.repository import ModelFolder, Repository
from normfold.serving.errors import LoadError, StartError

#: Of linux/capability.h: the form of its structures, and what lets root read and write whatever the permissions say.
CAPABILITY_VERSION = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


@pytest.fixture
def root(tmp_path, models):
    models.write(tmp_path / "repository" / "a", models.scale())
    models.write(tmp_path / "repository" / "b", models.scale())
    (tmp_path / "secret").write_text("secret\n", encoding="utf-8")
    return tmp_path / "repository"


def folder(root, name="a"):
    found = Repository(root).find(name)
    assert found is not None
    return found


@pytest.mark.parametrize("target", ["../../secret", "/etc/passwd", "{root}/../secret"])
@pytest.mark.parametrize(
    ("link", "read"),
    [
        ("labels.txt", lambda model: model.read("labels.txt")),
        ("config.pbtxt", lambda model: model.config_text()),
        ("1/golden.json", lambda model: model.read_golden(1)),
        ("1/other.onnx", lambda model: model.read_model(1, "other.onnx")),
    ],
)
def test_a_link_that_leads_out_of_the_repository_is_not_followed(root, target, link, read):
    path = root / "a" / link
    path.symlink_to(os.path.relpath(root.parent / "secret", path.parent) if ".." in target else target)
    with pytest.raises(LoadError, match=f"^{link} is a link that leads out of the repository"):
        read(folder(root))


@pytest.mark.parametrize("swapped", ["sub", "sub/labels.txt"])
def test_what_becomes_a_link_after_it_was_looked_at_is_not_followed(root, swapped, monkeypatch):
    model = root / "a"
    (model / "sub").mkdir()
    (model / "sub" / "labels.txt").write_text("ours\n")
    (root.parent / "labels.txt").write_text("secret\n")
    assert folder(root).read("sub/labels.txt") == b"ours\n"
    resolve = pathlib.Path.resolve

    def resolve_and_swap(path: pathlib.Path, strict: bool = False) -> pathlib.Path:
        found = resolve(path, strict)
        if path.name == "labels.txt":
            (model / swapped).rename(root.parent / "ours")
            (model / swapped).symlink_to(root.parent / ("labels.txt" if "/" in swapped else ""))
        return found

    found = folder(root)
    monkeypatch.setattr(pathlib.Path, "resolve", resolve_and_swap)
    with pytest.raises(LoadError, match=r"^sub/labels.txt cannot be read: "):
        found.read("sub/labels.txt")


@pytest.mark.parametrize("name", ["a\0b", "a" * 300])
def test_a_name_that_no_file_can_have_is_a_load_error(root, name):
    with pytest.raises(LoadError, match=r"cannot be read: (its name is not that of a file|File name too long)"):
        folder(root).read(name)


@pytest.mark.parametrize("name", ["config.pbtxt", "1/manifest.json"])
def test_a_file_that_the_server_itself_parses_is_small(root, name):
    """A megabyte of config.pbtxt takes a second, which no limit of a load ends."""
    for size, refused in ((1 << 20, False), ((1 << 20) + 1, True)):
        (root / "a" / name).write_text("# " + "x" * (size - 2), encoding="utf-8")
        with pytest.raises(LoadError) if refused else contextlib.nullcontext() as caught:
            folder(root).config_text()
            folder(root).find(1, "manifest.json")
        assert not refused or str(caught.value) == f"{name} is larger than the 1048576 bytes that it may have"


def test_a_manifest_outside_is_not_followed_either(root):
    (root / "a" / "1" / "manifest.json").symlink_to(root.parent / "secret")
    with pytest.raises(LoadError, match=r"1/manifest\.json is a link that leads out"):
        folder(root).read_model(1, "model.onnx")


def test_a_folder_that_is_a_link_does_not_lead_out_either(root, models):
    models.write(root.parent / "elsewhere", models.scale())
    (root / "c").symlink_to(root.parent / "elsewhere")
    with pytest.raises(LoadError, match="leads out of the repository"):
        folder(root, "c").read_model(1, "model.onnx")
    shutil.rmtree(root / "a" / "1")
    (root / "a" / "1").symlink_to(root.parent / "elsewhere" / "1")
    with pytest.raises(LoadError, match="leads out of the repository"):
        folder(root).read_model(1, "model.onnx")


def test_links_inside_the_repository_are_followed(root):
    (root / "..data").mkdir()
    (root / "..data" / "labels.txt").write_text("x", encoding="utf-8")
    (root / "a" / "labels.txt").symlink_to("../..data/labels.txt")
    assert folder(root).read("labels.txt") == b"x"
    (root.parent / "link").symlink_to(root)
    assert folder(root.parent / "link").read("labels.txt") == b"x"


def test_a_model_that_is_named_itself_may_be_a_link(root):
    (root.parent / "m.onnx").symlink_to(root / "a" / "1" / "model.onnx")
    (model,) = Repository(root.parent / "m.onnx").models().values()
    assert model.read_model(1, "model.onnx")
    (root.parent / "m").symlink_to(root / "a")
    (model,) = Repository(root.parent / "m").models().values()
    assert model.read_model(1, "model.onnx")


def test_links_in_a_circle_are_a_reason(root):
    (root / "a" / "config.pbtxt").symlink_to("config.pbtxt")
    with pytest.raises(LoadError, match=r"config\.pbtxt cannot be read: its links lead in a circle|Too many levels"):
        folder(root).config_text()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.pbtxt", lambda model: model.config_text()),
        ("labels.txt", lambda model: model.read("labels.txt")),
        ("1/model.onnx", lambda model: model.read_model(1, "model.onnx")),
        ("1/manifest.json", lambda model: model.read_model(1, "model.onnx")),
        ("1/golden.json", lambda model: model.read_golden(1)),
    ],
)
def test_a_named_pipe_is_refused_at_once(root, name, read):
    (root / "a" / name).unlink(missing_ok=True)
    os.mkfifo(root / "a" / name)
    model = folder(root)
    with pytest.raises(LoadError, match=f"^{name} cannot be read: it is not a plain file"):
        read(model)


def test_a_folder_in_place_of_a_file_is_refused(root):
    (root / "a" / "1" / "golden.json").mkdir()
    with pytest.raises(LoadError, match=r"1/golden\.json cannot be read: it is not a plain file"):
        folder(root).read_golden(1)


@contextlib.contextmanager
def bound_by_permissions():
    """Permissions of files hold for root, too, in this thread and in those that it starts (capabilities(7))."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    before, bound = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, before) == libc.capget(header, bound) == 0
    bound[0] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)  # those in force, of the first 32
    assert libc.capset(header, bound) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@pytest.fixture
def unreadable(models, tmp_path):
    """A repository with models a, b and c; nobody may read b, not even root in this thread."""
    for name in "abc":
        models.write(tmp_path / name, models.scale())
    (tmp_path / "b").chmod(0)
    with bound_by_permissions():
        yield tmp_path
    (tmp_path / "b").chmod(0o755)


def test_an_unreadable_folder_is_found_and_has_a_reason(unreadable):
    repository = Repository(unreadable)
    assert list(repository.models()) == ["a", "b", "c"]
    assert ModelFolder("a", unreadable / "a").versions() == [1]
    with pytest.raises(LoadError, match=r"config\.pbtxt cannot be read: Permission denied"):
        folder(unreadable, "b").config_text()
    with pytest.raises(LoadError, match="the model's folder cannot be read: Permission denied"):
        folder(unreadable, "b").versions()
    with pytest.raises(StartError, match="cannot be read: Permission denied"):
        Repository(unreadable / "b")


def test_an_unreadable_folder_stops_neither_the_others_nor_the_index(serve, unreadable, ask, caplog):
    with serve(unreadable, model_control="explicit") as one:
        rows = {row.name: row for row in one.call("RepositoryIndex", pb.RepositoryIndexRequest()).models}
        assert [rows[name].state for name in "abc"] == ["READY", "UNAVAILABLE", "READY"]
        assert rows["b"].reason == "config.pbtxt cannot be read: Permission denied"
        one.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="c"))
        with pytest.raises(grpc.RpcError, match=r"failed to load 'b': config\.pbtxt cannot be read"):
            one.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="b"))
        assert one.infer(ask("c")).model_version == "1"
        assert not one.call("ServerReady", pb.ServerReadyRequest()).ready
    assert not [record for record in caplog.records if record.exc_info]


def test_labels_outside_never_reach_a_client(serve, root, ask):
    text = 'output { name: "y" data_type: TYPE_FP32 dims: [-1, 4] label_filename: "labels.txt" }'
    (root / "a" / "config.pbtxt").write_text(text, encoding="utf-8")
    (root / "a" / "labels.txt").symlink_to(root.parent / "secret")
    with serve(root) as one:
        rows = {row.name: row for row in one.call("RepositoryIndex", pb.RepositoryIndexRequest()).models}
        assert rows["a"].reason.startswith("labels.txt is a link that leads out of the repository")
        assert rows["b"].state == "READY"
