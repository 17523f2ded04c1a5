"""The image of a repository on object storage: whole versions only, and the storage's content only."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import fsspec
import pytest

from normfold.cli.serve import serve
from normfold.cli.serve_repository import config_of, copy_here
from normfold.manifest import manifest
from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import StartError
from normfold.serving.remote.mirror import Mirror, image_of, refresher
from normfold.serving.remote.store import RemoteError, Store

FILES = {"model.onnx": b"weights", "golden.json": b"{}"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NORMFOLD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("variable", "ours"), [("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"), ("HF_HUB_DISABLE_TELEMETRY", "1")]
)
def test_the_libraries_are_told_to_ask_for_no_more_than_the_files(monkeypatch, variable, ours):
    monkeypatch.delenv(variable, raising=False)
    Store("memory://a")
    assert os.environ[variable] == ours
    monkeypatch.setenv(variable, "theirs")
    Store("memory://a")
    assert os.environ[variable] == "theirs"


class Bucket:
    """A bucket in the memory of this process, which is a store of fsspec like the others."""

    def __init__(self) -> None:
        self.url = f"memory://{uuid.uuid4().hex}/models"
        self._files = fsspec.filesystem("memory")

    def put(self, path: str, content: bytes) -> None:
        self._files.pipe_file(f"{self.url}/{path}", content)

    def put_version(self, folder: str, files=FILES) -> None:
        for name, content in {**files, "manifest.json": manifest(files)}.items():
            self.put(f"{folder}/{name}", content)

    def remove(self, path: str) -> None:
        self._files.rm(f"{self.url}/{path}", recursive=True)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


def contents(url: str) -> dict[str, bytes]:
    image = image_of(url)
    return {str(path.relative_to(image)): path.read_bytes() for path in sorted(image.rglob("*")) if path.is_file()}


def test_the_image_has_versions_and_the_files_beside_them(bucket):
    bucket.put_version("ecg/1")
    bucket.put("ecg/config.pbtxt", b"max_batch_size: 8")
    bucket.put("ecg/labels.txt", b"a\nb\n")
    Mirror(bucket.url).start()
    expected = {f"ecg/1/{name}" for name in (*FILES, "manifest.json")} | {"ecg/config.pbtxt", "ecg/labels.txt"}
    assert contents(bucket.url).keys() == expected
    assert list(Repository(image_of(bucket.url)).models()) == ["ecg"]


@pytest.mark.parametrize("lack", ["model.onnx", "golden.json"])
def test_a_version_without_a_file_of_its_manifest_is_waited_for(bucket, caplog, lack):
    bucket.put_version("ecg/1")
    bucket.put("ecg/2/manifest.json", manifest(FILES))
    bucket.put_version("other/1")
    for name in FILES.keys() - {lack}:
        bucket.put(f"ecg/2/{name}", FILES[name])
    mirror = Mirror(bucket.url)
    mirror.start()
    mirror.refresh()
    assert not any(path.startswith("ecg/2") for path in contents(bucket.url))
    said = [record.message for record in caplog.records if "is not whole yet" in record.message]
    assert len(said) == 1, "it is said once"
    assert f"'ecg/2' is not whole yet: '{lack}' of manifest.json is not there" in said[0]
    bucket.put(f"ecg/2/{lack}", FILES[lack])
    mirror.refresh()
    assert f"ecg/2/{lack}" in contents(bucket.url)


@pytest.mark.parametrize("bad", [b"changed", b"too long"])
def test_a_version_with_another_digest_or_size_than_its_manifest_is_not_taken(bucket, caplog, bad):
    bucket.put_version("ecg/1")
    mirror = Mirror(bucket.url)
    mirror.start()
    before = contents(bucket.url)
    bucket.put("ecg/1/model.onnx", bad)
    mirror.refresh()
    assert contents(bucket.url) == before, "what was whole stays"
    assert "manifest.json says" in caplog.text


def test_a_version_that_has_changed_takes_the_place_of_the_old_one_as_a_whole(bucket):
    bucket.put_version("ecg/1")
    mirror = Mirror(bucket.url)
    mirror.start()
    bucket.remove("ecg/1/golden.json")
    bucket.put_version("ecg/1", {"model.onnx": b"other weights"})
    mirror.refresh()
    assert contents(bucket.url).keys() == {"ecg/1/model.onnx", "ecg/1/manifest.json"}
    assert contents(bucket.url)["ecg/1/model.onnx"] == b"other weights"


def test_what_is_gone_from_the_storage_goes_from_the_image(bucket):
    for folder in ("ecg/1", "ecg/2", "other/1"):
        bucket.put_version(folder)
    bucket.put("ecg/labels.txt", b"a")
    mirror = Mirror(bucket.url)
    mirror.start()
    for path in ("ecg/1", "other", "ecg/labels.txt"):
        bucket.remove(path)
    mirror.refresh()
    assert contents(bucket.url).keys() == {f"ecg/2/{name}" for name in (*FILES, "manifest.json")}
    assert not (image_of(bucket.url) / "other").exists()


def test_only_what_has_changed_is_fetched_also_after_a_restart(bucket, monkeypatch):
    bucket.put_version("ecg/1")
    bucket.put("ecg/config.pbtxt", b"")
    Mirror(bucket.url).start()
    fetched = []
    fetch = Store.fetch
    monkeypatch.setattr(Store, "fetch", lambda self, found, path: (fetched.append(path.name), fetch(self, found, path)))
    bucket.put_version("ecg/2")
    Mirror(bucket.url).start()
    assert sorted(fetched) == ["golden.json", "manifest.json", "model.onnx"]
    (image_of(bucket.url) / "ecg/1/model.onnx").write_bytes(b"")  # after a loss of power
    Mirror(bucket.url).start()
    assert contents(bucket.url)["ecg/1/model.onnx"] == FILES["model.onnx"]


def test_what_no_repository_has_and_names_that_lead_elsewhere_are_left_out(bucket, cache):
    bucket.put_version("ecg/1")
    for path in ("ecg/1/deep/x", "ecg/.hidden", "../up", "ecg/../../up", "a/b/c/d/e"):
        bucket.put(path, b"x")
    Mirror(bucket.url).start()
    assert contents(bucket.url).keys() == {f"ecg/1/{name}" for name in (*FILES, "manifest.json")}
    assert not list(cache.rglob("up"))


def test_an_object_of_the_name_of_a_folder_is_left_out(bucket, monkeypatch):
    bucket.put_version("ecg/1")
    objects = Store.objects
    monkeypatch.setattr(
        Store, "objects", lambda self: {**objects(self), "ecg": next(iter(objects(self).values()))}
    )  # S3 can have both
    Mirror(bucket.url).start()
    assert contents(bucket.url).keys() == {f"ecg/1/{name}" for name in (*FILES, "manifest.json")}


@pytest.mark.parametrize("single", ["ecg", "ecg/1/model.onnx"])
def test_a_url_may_name_one_model_or_one_file(bucket, single):
    bucket.put_version("ecg/1")
    bucket.put("ecg/config.pbtxt", b"")
    Mirror(f"{bucket.url}/{single}").start()
    found = Repository(image_of(f"{bucket.url}/{single}")).models()
    assert list(found) == ["ecg" if single == "ecg" else "model"]
    assert next(iter(found.values())).read_model(1, "model.onnx") == FILES["model.onnx"]


def test_a_model_whose_name_is_a_number_keeps_its_versions(bucket):
    bucket.put_version("7/1")
    bucket.put("7/config.pbtxt", b"")
    mirror = Mirror(bucket.url)
    mirror.start()
    bucket.put("7/config.pbtxt", b"max_batch_size: 1")
    mirror.refresh()
    assert contents(bucket.url).keys() == {f"7/1/{name}" for name in (*FILES, "manifest.json")} | {"7/config.pbtxt"}


def test_an_object_that_goes_while_it_is_fetched_is_waited_for(bucket, monkeypatch, caplog):
    bucket.put_version("ecg/1")
    objects = Store.objects

    def and_then_gone(self):
        found = objects(self)
        bucket.remove("ecg/1/model.onnx")
        return found

    monkeypatch.setattr(Store, "objects", and_then_gone)
    Mirror(bucket.url).start()
    assert contents(bucket.url) == {}
    assert "'ecg/1' is not whole yet: model.onnx is gone" in caplog.text


def test_no_such_folder_is_said(bucket):
    with pytest.raises(StartError, match=r"repository memory://.* cannot be read: there is no such bucket"):
        Mirror(bucket.url).start()


class NoCredentialsError(Exception):
    """As in botocore."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoCredentialsError("x"), "no credentials were found; set AWS_ACCESS_KEY_ID"),
        (PermissionError("Forbidden"), "the credentials may not list or read it"),
        (ValueError("Protocol not known: x"), "memory:// is no storage that is known; use s3://, gs:// or hf://"),
        (ConnectionError("no\nroute"), "ConnectionError: no route"),
    ],
)
def test_an_error_of_a_library_becomes_one_line(bucket, monkeypatch, error, words):
    store = Store(bucket.url)

    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(type(store._files), "find", fails)
    with pytest.raises(RemoteError, match=words) as caught:
        store.objects()
    assert caught.value.passing is isinstance(error, ConnectionError)


def test_a_storage_that_is_away_does_not_stop_a_server_that_has_an_image(bucket, monkeypatch, caplog):
    bucket.put_version("ecg/1")

    def away(self):
        error = RemoteError("away")
        error.passing = True
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Store, "objects", away)
        with pytest.raises(StartError, match="away"):
            Mirror(bucket.url).start()
    Mirror(bucket.url).start()
    monkeypatch.setattr(Store, "objects", away)
    Mirror(bucket.url).start()
    assert "away; serving what was copied before" in caplog.text
    look = refresher(bucket.url)
    assert look is not None
    look()
    assert "away; what was copied before is served on" in caplog.text
    assert refresher("") is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "names no bucket; expected such as s3://BUCKET/FOLDER"),
        ("nosuch://b/c", "nosuch:// is no storage that is known; use s3://, gs:// or hf://"),
    ],
)
def test_a_url_that_cannot_be_is_refused_in_one_line(url, words):
    options = serve.make_context("serve", ["--repository", url]).params
    del options["workers"]
    with pytest.raises(StartError, match=words):
        copy_here(config_of(options))


def test_packages_that_are_missing_are_named(monkeypatch):
    def missing(*arguments, **options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(StartError, match=r"--repository s3://b/m: .* missing: pip install 'normfold\[remote\]'"):
        Mirror("s3://b/m")


def counted(monkeypatch) -> list[str]:
    """The names of the objects that are fetched from now on."""
    fetched: list[str] = []
    fetch = Store.fetch
    monkeypatch.setattr(Store, "fetch", lambda self, found, path: (fetched.append(path.name), fetch(self, found, path)))
    return fetched


@pytest.mark.parametrize("error", [PermissionError("Access Denied"), OSError(28, "No space left on device")])
def test_an_object_that_cannot_be_read_keeps_nothing_else_from_coming(bucket, monkeypatch, caplog, error):
    bucket.put_version("a/1")
    bucket.put_version("gone/1")
    Mirror(bucket.url).start()
    look = refresher(bucket.url)
    assert look is not None
    bucket.put_version("a/2")
    bucket.put_version("b/1", {"denied.bin": b"", "model.onnx": b"large weights"})
    bucket.remove("gone")
    files = type(Store(bucket.url)._files)
    get = files.get_file

    def denied(self, key, *arguments, **options):
        if key.endswith("denied.bin"):
            raise error
        return get(self, key, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(files, "get_file", denied)
        fetched = counted(patched)
        look()
        inode = (image_of(bucket.url) / "a/2/model.onnx").stat().st_ino
        before = len(fetched)
        for _ in range(2):
            look()
        assert (image_of(bucket.url) / "a/2/model.onnx").stat().st_ino == inode
        assert fetched[before:] == ["manifest.json", "denied.bin"] * 2, "the smallest first"
    assert contents(bucket.url).keys() == {f"a/{n}/{name}" for n in (1, 2) for name in (*FILES, "manifest.json")}
    assert sum("served on" in record.message for record in caplog.records) == 1, "it is said once"
    look()
    assert "b/1/denied.bin" in contents(bucket.url)


def test_each_object_that_cannot_be_read_is_named_and_ends_no_start_with_an_image(bucket, monkeypatch, caplog):
    bucket.put_version("a/1")
    Mirror(bucket.url).start()
    denied = ["b/1/model.onnx"]
    fetch = type(Store(bucket.url)._files).get_file

    def get_file(self, key, *arguments, **options):
        if key.endswith(tuple(denied)):
            raise PermissionError("Access Denied")
        return fetch(self, key, *arguments, **options)

    monkeypatch.setattr(type(Store(bucket.url)._files), "get_file", get_file)
    for folder in ("a/2", "b/1", "c/1"):
        bucket.put_version(folder)
    reason = f"of repository {bucket.url} cannot be read: the credentials may not list or read it"
    Mirror(bucket.url).start()
    assert {path.rpartition("/")[0] for path in contents(bucket.url)} == {"a/1", "a/2", "c/1"}
    assert f"'b/1/model.onnx' {reason}; serving what was copied before" in caplog.text
    caplog.clear()
    look = refresher(bucket.url)
    assert look is not None
    look()
    look()
    bucket.put_version("d/1")
    denied.append("d/1/golden.json")
    look()
    look()
    said = [record.message for record in caplog.records if "served on" in record.message]
    assert len(said) == 2
    assert f"'b/1/model.onnx' {reason}" in said[0]
    assert f"'b/1/model.onnx' {reason}; 'd/1/golden.json' {reason}" in said[1]


def test_a_first_copy_counts_only_as_a_whole(bucket, monkeypatch):
    bucket.put_version("a/1")
    bucket.put_version("b/1")
    fetch = Store.fetch

    def breaks_off(self, found, path):
        if "/b/" in found.key:
            error = RemoteError("away")
            error.passing = True
            raise error
        fetch(self, found, path)

    monkeypatch.setattr(Store, "fetch", breaks_off)
    for _ in range(2):
        with pytest.raises(StartError, match="away"):
            Mirror(bucket.url).start()


@pytest.mark.parametrize("fault", ["missing", "size", "digest"])
def test_a_version_that_is_not_whole_is_fetched_again_only_when_it_has_changed(bucket, monkeypatch, caplog, fault):
    bucket.put_version("ecg/1")
    mirror = Mirror(bucket.url)
    mirror.start()
    files = {"model.onnx": b"new weights", "golden.json": b"{}"}
    bucket.put("ecg/2/manifest.json", manifest(files))
    bucket.put("ecg/2/model.onnx", {"size": b"new", "digest": b"NEW WEIGHTS"}.get(fault, files["model.onnx"]))
    if fault != "missing":
        bucket.put("ecg/2/golden.json", files["golden.json"])
    fetched = counted(monkeypatch)
    for _ in range(3):
        mirror.refresh()
    every = ["manifest.json", "golden.json", "model.onnx"]
    assert fetched == (every if fault == "digest" else ["manifest.json"])
    fetched.clear()
    with monkeypatch.context() as patched:
        patched.setattr("normfold.serving.remote.mirror.AGAIN_SECONDS", 0.0)
        mirror.refresh()
    assert fetched == (every if fault == "digest" else ["manifest.json"]), "a file may have been damaged on its way"
    bucket.put_version("ecg/2", files)
    mirror.refresh()
    assert contents(bucket.url)["ecg/2/model.onnx"] == b"new weights"
    assert sum("is not whole yet" in record.message for record in caplog.records) == 1


def test_a_mirror_that_cannot_be_made_is_only_logged(bucket, monkeypatch, caplog):
    bucket.put_version("ecg/1")
    look = refresher(bucket.url)
    assert look is not None

    def missing(*arguments, **options):
        raise ImportError("Install s3fs to access S3")

    with monkeypatch.context() as patched:
        patched.setattr(fsspec.core, "url_to_fs", missing)
        look()
        look()
    assert caplog.text.count("packages for object storage are missing") == 1
    look()
    assert "ecg/1/model.onnx" in contents(bucket.url)
