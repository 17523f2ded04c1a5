"""Changes of a repository: only what is whole and has settled counts, each change once."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from normfold.serving.catalog import config
from normfold.serving.catalog.changes import Changes, lacking
from normfold.serving.catalog.following import Following
from normfold.serving.catalog.repository import Repository
from normfold.serving.catalog.served import ServedModel
from normfold.serving.errors import LoadError


@pytest.fixture
def root(tmp_path, models):
    models.write(tmp_path / "m", models.scale(), 1, "max_batch_size: 8")
    return tmp_path


def begun(root):
    changes = Changes(Repository(root))
    changes.begin()
    return changes


def test_what_is_there_at_the_start_is_no_change(root):
    changes = begun(root)
    assert changes.look() == ([], [])
    assert changes.look() == ([], [])


def test_a_new_version_counts_once_when_it_has_settled(root, models):
    changes = begun(root)
    models.write(root / "m", models.scale(3.0), 2)
    assert changes.look() == ([], [])
    assert changes.look() == (["m"], [])
    assert changes.look() == ([], [])
    (root / "m/config.pbtxt").write_text("max_batch_size: 4")
    assert [changes.look(), changes.look()] == [([], []), (["m"], [])]


def test_a_half_copied_version_is_waited_for(root, models):
    changes = begun(root)
    folder = root / "m/2"
    folder.mkdir()
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    (folder / "model.onnx").touch()
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    assert changes.incomplete == {"m": "version 2 has no .onnx file, or an empty one"}
    (folder / "model.onnx").unlink()
    content = models.scale(3.0)
    entry = {"model.onnx": {"bytes": len(content), "sha256": "0"}}
    (folder / "manifest.json").write_text(json.dumps({"files": entry}))
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    assert changes.incomplete == {"m": "version 2 has no file 'model.onnx', which its manifest.json lists"}
    (folder / "model.onnx").write_bytes(content[:10])
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    assert changes.incomplete == {"m": "version 2 has a file 'model.onnx' of another size than its manifest.json says"}
    (folder / "model.onnx").write_bytes(content)
    assert [changes.look(), changes.look()] == [([], []), (["m"], [])]
    assert changes.incomplete == {}


def test_a_half_copied_version_that_is_not_to_be_in_service_is_not_waited_for(root, models):
    """A copy that broke off for good: the next releases were never loaded."""
    changes = begun(root)
    (root / "m/2").mkdir()
    models.write(root / "m", models.scale(3.0), 3)
    assert [changes.look(), changes.look()] == [([], []), (["m"], [])]
    (root / "m/config.pbtxt").write_text("version_policy { all {} }", encoding="utf-8")
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    assert changes.incomplete == {"m": "version 2 has no .onnx file, or an empty one"}
    (root / "m/config.pbtxt").write_text("version_policy { specific { versions: [1, 3] } }", encoding="utf-8")
    assert [changes.look(), changes.look()] == [([], []), (["m"], [])]


def test_the_pauses_of_a_copy_have_nothing_loaded_again(root, models):
    """A version below the one in service was copied, and each pause had that one loaded again."""
    models.write(root / "m", models.scale(3.0), 3)
    changes = begun(root)
    (root / "m/2").mkdir()
    files = {name: {"bytes": 3, "sha256": "0"} for name in ("a.onnx", "b.onnx")}
    (root / "m/2/manifest.json").write_text(json.dumps({"files": files}))
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    (root / "m/2/a.onnx").write_bytes(b"123")
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    (root / "m/2/b.onnx").write_bytes(b"123")
    assert [changes.look() for _ in range(3)] == [([], []), (["m"], []), ([], [])]
    (root / "m/2/b.onnx").unlink()
    shutil.rmtree(root / "m/3")  # and with it the version in service changes
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    assert changes.incomplete == {"m": "version 2 has no file 'b.onnx', which its manifest.json lists"}
    shutil.rmtree(root / "m/2")
    assert [changes.look() for _ in range(3)] == [([], []), (["m"], []), ([], [])]


def test_a_version_whose_file_cannot_be_looked_at_keeps_no_other_one_from_being_loaded(root, models):
    changes = begun(root)
    (root / "m/1/model.onnx").unlink()
    (root / "m/1/model.onnx").symlink_to("nowhere")
    models.write(root / "m", models.scale(3.0), 2)
    assert [changes.look() for _ in range(3)] == [([], []), (["m"], []), ([], [])]


@pytest.mark.parametrize("size", ["1e999", "9" * 5000, f'"{"9" * 5000}"', "[" * 100_000])
def test_a_manifest_with_a_size_that_is_no_number_is_waited_for(root, models, size):
    models.write(root / "n", models.scale())
    manifest = '{"files": {"model.onnx": {"bytes": SIZE, "sha256": "0"}}}'
    (root / "n/1/manifest.json").write_text(manifest.replace("SIZE", size))
    assert lacking(Repository(root).models()["n"]) == "version 1 has a manifest.json that cannot be read"


def test_a_new_model_is_loaded_and_one_that_is_gone_unloaded(root, models):
    changes = begun(root)
    models.write(root / "n", models.scale())
    assert [changes.look(), changes.look()] == [([], []), (["n"], [])]
    shutil.rmtree(root / "m")
    assert [changes.look(), changes.look(), changes.look()] == [([], []), ([], ["m"]), ([], [])]


def test_a_model_that_is_gone_for_one_look_only_was_replaced(root, models):
    changes = begun(root)
    shutil.move(root / "m", root / ".old")
    assert changes.look() == ([], [])
    models.write(root / "m", models.scale(5.0), 1)
    assert [changes.look(), changes.look()] == [([], []), (["m"], [])]


def test_no_model_is_gone_while_the_repository_itself_is_away(root, models):
    """A volume that is not mounted for a while: no folder, or an empty one in its place."""
    changes = begun(root)
    kept = root.parent / f"{root.name}-kept"
    shutil.move(root, kept)
    for _ in range(3):
        with pytest.raises(LoadError, match=r"repository '.*' cannot be read: No such file"):
            changes.look()
    root.mkdir()
    for _ in range(3):
        with pytest.raises(LoadError, match="is another folder now, which holds no model"):
            changes.look()
    root.rmdir()
    shutil.move(kept, root)
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    shutil.rmtree(root / "m")
    assert [changes.look(), changes.look()] == [([], []), ([], ["m"])]


def test_no_model_is_gone_where_an_empty_volume_has_the_numbers_of_the_old_one(root, monkeypatch):
    """A tmpfs that is unmounted and mounted anew: the kernel gives it the free device number, and inode 1."""
    changes = begun(root)
    shutil.rmtree(root / "m")
    mounted = os.statvfs(root).f_fsid
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_fsid=mounted + 1))
    for _ in range(3):
        with pytest.raises(LoadError, match="is another folder now, which holds no model"):
            changes.look()


@pytest.mark.parametrize("known", ["at the start", "by a look", "by another worker"])
def test_no_model_is_gone_while_its_own_volume_is_not_mounted(root, models, known):
    """Its mount point is an empty folder then, which counted as a model that was deleted."""
    changes = begun(root)
    name = "m" if known == "at the start" else "n"
    if name == "n":
        models.write(root / name, models.scale())
    if known == "by another worker":
        changes.note(name)
    elif known == "by a look":
        assert [changes.look(), changes.look()] == [([], []), (["n"], [])]
    mounted = root / ".mounted"
    shutil.move(root / name, mounted)
    (root / name).mkdir()
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    assert changes.incomplete == {name: "in the place of its folder is another one, which holds no model"}
    (root / name).rmdir()
    shutil.move(mounted, root / name)
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    assert changes.incomplete == {}
    for version in (root / name).iterdir():
        shutil.rmtree(version) if version.is_dir() else version.unlink()
    assert [changes.look(), changes.look()] == [([], []), ([], [name])]


def test_a_model_is_gone_where_its_folder_was_replaced_by_a_file(root):
    """No volume is missing there; it was in service for ever."""
    changes = begun(root)
    shutil.move(root / "m", root / ".old")  # so that the file has another inode
    (root / "m").write_bytes(b"no model")
    assert [changes.look(), changes.look()] == [([], []), ([], ["m"])]


def test_a_folder_that_is_emptied_and_copied_to_again_is_never_gone(root):
    """As ``rm -r m; mkdir m; cp -r new/. m`` does, which may take long."""
    changes = begun(root)
    shutil.move(root / "m", root / ".old")  # so that the folder that is made again has another inode
    (root / "m").mkdir()
    assert [changes.look() for _ in range(3)] == [([], [])] * 3
    shutil.copytree(root / ".old", root / "m", dirs_exist_ok=True)
    assert [changes.look(), changes.look(), changes.look()] == [([], []), (["m"], []), ([], [])]


def test_a_repository_may_be_replaced_by_another_one(root, models):
    changes = begun(root)
    shutil.move(root, root.parent / f"{root.name}-old")
    models.write(root / "n", models.scale())
    assert [changes.look(), changes.look()] == [([], []), (["n"], ["m"])]


def test_a_worker_that_starts_again_finds_what_changed_while_none_looked(root, models):
    repository = Repository(root)
    written = config.parse("max_batch_size: 8").SerializeToString()
    following = Following()
    assert following.behind(repository) == []
    following.follow([ServedModel("m", (1,), written, ""), ServedModel("gone", (1,), b"", "")])
    assert following.behind(repository) == ["gone"]
    models.write(root / "m", models.scale(3.0), 2)
    models.write(root / "new", models.scale())
    assert following.behind(repository) == ["gone", "m", "new"]
    changes = Changes(repository)
    changes.begin()
    changes.forget(following.behind(repository))
    assert changes.look() == (["m", "new"], ["gone"])
    assert changes.look() == ([], [])


@pytest.mark.parametrize("text", ["max_batch_size: 4", "max_batch_size: eight"])
def test_another_configuration_is_found_too(root, text):
    following = Following()
    following.follow([ServedModel("m", (1,), config.parse("max_batch_size: 8").SerializeToString(), "")])
    (root / "m/config.pbtxt").write_text(text)
    assert following.behind(Repository(root)) == ["m"]


def test_what_another_worker_had_this_one_load_is_no_change(root, models):
    changes = begun(root)
    models.write(root / "m", models.scale(3.0), 2)
    models.write(root / "n", models.scale())
    changes.note("m")
    changes.note("n")
    assert [changes.look(), changes.look()] == [([], []), ([], [])]
    shutil.rmtree(root / "n")
    changes.note("n")  # it is gone before it was loaded: that is still to be found
    changes.note_gone("m")
    shutil.rmtree(root / "m")
    assert [changes.look(), changes.look(), changes.look()] == [([], []), ([], ["n"]), ([], [])]


def test_a_model_that_another_worker_had_this_one_load_is_not_gone_at_its_first_look(root, models):
    changes = begun(root)
    models.write(root / "n", models.scale())
    changes.note("n")
    shutil.move(root / "n", root / ".old")
    assert changes.look() == ([], [])
    models.write(root / "n", models.scale(5.0))
    assert [changes.look(), changes.look()] == [([], []), (["n"], [])]
