"""Where models are found, and which files are refused before onnxruntime sees them."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from normfold.manifest import manifest
from normfold.protos import onnx_file as subset
from normfold.serving.catalog.manifests import check_manifest
from normfold.serving.catalog.repository import ModelFolder, Repository, SentFolder
from normfold.serving.catalog.version_text import parse_version
from normfold.serving.errors import ConfigError, InvalidRequest, LoadError, StartError, UnsafeModel
from normfold.serving.runtime import onnx_file
from normfold.serving.wording import quoted


@pytest.fixture
def root(tmp_path, models):
    models.write(tmp_path / "a", models.scale(), 1)
    models.write(tmp_path / "a", models.scale(), 12)
    models.write(tmp_path / "b", models.scale(), 3, "max_batch_size: 2")
    for name in ("a/01", "a/0", "a/x", "a/1.5", ".tmp-c/1", "-d/1", "e"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "README").write_text("not a model", encoding="utf-8")
    return tmp_path


def test_models_and_versions_are_found_and_everything_else_is_not(root):
    found = Repository(root).models()
    assert list(found) == ["a", "b"]
    assert found["a"].versions() == [1, 12]
    assert found["b"].config_text() == "max_batch_size: 2"
    assert found["a"].config_text() is None


def test_versions_have_up_to_63_bits_such_as_a_time_in_nanoseconds(root, models):
    for name in ("1764511111000000000", str(2**63 - 1), str(2**63)):
        (root / "a" / name).mkdir()
    assert ModelFolder("a", root / "a").versions() == [1, 12, 1764511111000000000, 2**63 - 1]
    sent = SentFolder("s", {"1764511111000000000/model.onnx": b"x", f"{2**63}/model.onnx": b"y"})
    assert sent.versions() == [1764511111000000000]
    assert parse_version(str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(InvalidRequest, match="stol"):
        parse_version(str(2**63))


def test_one_models_folder_is_a_repository_of_one(root):
    assert list(Repository(root / "a").models()) == ["a"]
    assert list(Repository(root / "b", name="c").models()) == ["c"]


def test_one_file_is_version_1_of_a_model(root):
    (folder,) = Repository(root / "a" / "1" / "model.onnx").models().values()
    assert (folder.name, folder.versions()) == ("model", [1])
    assert folder.read_model(1, "model.onnx")[:1] == b"\x08"


@pytest.mark.parametrize(
    ("path", "name", "words"),
    [
        ("nowhere", None, "does not exist"),
        ("README", None, "is a file but not an .onnx file"),
        ("e", None, "holds no model; expected"),
        ("a/1", None, r"; it is one version: did you mean '.*/a', or '.*/a/1/model\.onnx' with --name a\?$"),
        (".", "x", "a name can only be given to a single model"),
        ("a", "../x", "is not a model name"),
    ],
)
def test_what_holds_no_model_is_refused(root, path, name, words):
    with pytest.raises(StartError, match=words):
        Repository(root / path, name)


def test_a_path_one_folder_too_high_is_told_the_one_that_was_meant(root, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    (above / "empty" / "x").mkdir(parents=True)
    (above / "numbers" / "x" / "7").mkdir(parents=True)
    (above / "repository").symlink_to(root)
    (above / "net.onnx").touch()  # a repository is meant more often than a file beside it
    with pytest.raises(StartError, match=r"holds no model; expected .*; did you mean '[^']*/repository'\?$"):
        Repository(above)
    (above / "other").symlink_to(root)
    with pytest.raises(StartError, match=r"; did you mean '.*/other' or '.*/repository'\?$"):
        Repository(above)
    with pytest.raises(StartError, match="did you mean"):
        Repository(above, wait=True)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("b/v1", r"; '[^']*/b/v1/net\.onnx' is in no version's folder: move it to '[^']*/b/1/net\.onnx'$"),
        ("b", r"; '[^']*/b/net\.onnx' is in no version's folder: move it to '[^']*/b/1/net\.onnx'$"),
        ("b/01", r"; '[^']*/b/01/net\.onnx' is in no version's folder: move it to '[^']*/b/1/net\.onnx'$"),
        ("a b/1", r"; 'a b' is no name of a model \(letters, digits, \. _ -\)$"),
        (".tmp-1/1", r"or the path of one model's folder or \.onnx file$"),
        ("docs/x/y", r"or the path of one model's folder or \.onnx file$"),
    ],
)
def test_a_file_at_a_wrong_place_of_a_repository_without_models_is_named(tmp_path_factory, place, words):
    repository = tmp_path_factory.mktemp("repository")
    (repository / place).mkdir(parents=True)
    (repository / place / "net.onnx").touch()
    with pytest.raises(StartError, match=words):
        Repository(repository)
    assert Repository(repository, wait=True).models() == {}


def test_a_folder_without_any_model_may_wait_for_the_first_one(tmp_path_factory, root):
    empty = tmp_path_factory.mktemp("empty")
    (empty / "lost+found").mkdir()
    repository = Repository(empty, wait=True)
    assert repository.models() == {}
    shutil.copytree(root / "a", empty / "a")
    assert list(repository.models()) == ["a"]
    with pytest.raises(StartError, match="does not exist"):
        Repository(empty / "nowhere", wait=True)


def test_a_missing_file_is_told_by_its_place_in_the_model(root):
    with pytest.raises(LoadError, match=r"^12/other\.onnx cannot be read: No such file"):
        ModelFolder("a", root / "a").read_model(12, "other.onnx")
    with pytest.raises(
        LoadError, match=r'; model.onnx is there: rename it, or write default_model_filename: "model.onnx"'
    ):
        ModelFolder("a", root / "a").read_model(1, "other.onnx")


def test_a_missing_file_in_a_folder_that_cannot_be_listed_is_its_own_reason(root, monkeypatch):
    def fails(path, pattern):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "glob", fails)
    with pytest.raises(LoadError, match=r"^12/other\.onnx cannot be read: No such file"):
        ModelFolder("a", root / "a").read_model(12, "other.onnx")


@pytest.mark.parametrize("name", ["../b/config.pbtxt", "/etc/passwd", "x/../../b/config.pbtxt"])
def test_files_beside_the_versions_do_not_lie_elsewhere(root, name):
    with pytest.raises(LoadError, match="does not lie in the model's folder"):
        ModelFolder("a", root / "a").read(name)


def test_a_config_that_is_no_text_is_refused(root):
    (root / "a" / "config.pbtxt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        ModelFolder("a", root / "a").config_text()


def test_a_byte_order_mark_of_a_config_is_no_part_of_it(root):
    (root / "b" / "config.pbtxt").write_bytes(b"\xef\xbb\xbfmax_batch_size: 2")
    assert ModelFolder("b", root / "b").config_text() == "max_batch_size: 2"


def test_files_sent_in_a_request_are_a_folder(models):
    sent = SentFolder("s", {"2/model.onnx": b"x", "labels.txt": b"a", "config/x": b""})
    assert (sent.versions(), sent.read_model(2, "model.onnx"), sent.read("labels.txt")) == ([2], b"x", b"a")
    with pytest.raises(LoadError, match="not among the files"):
        sent.read("nope")


DATA = b"some bytes"
GOOD = {"schema": 1, "files": {"model.onnx": {"bytes": 10, "sha256": hashlib.sha256(DATA).hexdigest()}}}


def test_a_manifest_that_agrees_is_fine():
    check_manifest(json.dumps(GOOD).encode(), "model.onnx", DATA)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (json.dumps({**GOOD, "files": {}}), "does not list model.onnx"),
        ("[]", "does not list model.onnx"),
        ("{", "does not list model.onnx"),
        ("[" * 100_000, "does not list model.onnx"),
        ('{"files": {"model.onnx": {"bytes": 1e999, "sha256": "0"}}}', "does not list model.onnx"),
        ('{"files": {"model.onnx": {"bytes": "%s", "sha256": "0"}}}' % ("9" * 5000), "does not list model.onnx"),
        (json.dumps({"files": {"model.onnx": {"bytes": 9, "sha256": "0"}}}), "has 10 bytes, manifest.json says 9"),
        (json.dumps({"files": {"model.onnx": {"bytes": 10, "sha256": "0"}}}), "the file was changed"),
    ],
)
def test_a_manifest_that_does_not_agree_refuses_the_file(manifest, words):
    with pytest.raises(UnsafeModel, match=words):
        check_manifest(manifest.encode(), "model.onnx", DATA)


def test_the_manifest_is_checked_when_a_model_is_read(root):
    folder = ModelFolder("a", root / "a")
    (root / "a" / "1" / "manifest.json").write_text(json.dumps(GOOD), encoding="utf-8")
    with pytest.raises(UnsafeModel, match=r"manifest\.json says 10"):
        folder.read_model(1, "model.onnx")


@pytest.mark.parametrize("name", ["golden.json", "report.json", "more/labels.txt", "\ud800", "a\0b", "n" * 300])
def test_a_version_without_a_file_that_its_manifest_lists_is_refused(root, name):
    data = (root / "a" / "1" / "model.onnx").read_bytes()
    (root / "a" / "1" / "manifest.json").write_bytes(manifest({"model.onnx": data, "extra.txt": b""}))
    (root / "a" / "1" / "extra.txt").touch()
    folder = ModelFolder("a", root / "a")
    assert folder.read_model(1, "model.onnx") == data
    (root / "a" / "1" / "manifest.json").write_bytes(manifest({"model.onnx": data, name: b"x"}))
    with pytest.raises(UnsafeModel, match=re.escape(f"{quoted(name)} of manifest.json is not there")):
        folder.read_model(1, "model.onnx")


def test_our_part_of_onnx_agrees_with_onnx():
    for name, message in subset.DESCRIPTOR.message_types_by_name.items():
        theirs = getattr(onnx, name).DESCRIPTOR
        for field in message.fields:
            other = theirs.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)
    assert subset.TensorProto.EXTERNAL == TensorProto.EXTERNAL
    assert subset.TypeProto.Tensor.DESCRIPTOR.fields_by_name["shape"].number == 2


def _external(name: str = "w") -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    return tensor


def _hidden() -> TensorProto:
    """External data without the location flag."""
    tensor = _external()
    tensor.ClearField("data_location")
    return tensor


def _sparse(values: TensorProto | None = None, indices: TensorProto | None = None) -> onnx.SparseTensorProto:
    plain = numpy_helper.from_array(np.zeros(4, np.int64), "i")
    return helper.make_sparse_tensor(values or numpy_helper.from_array(np.zeros(4, np.float32)), indices or plain, [4])


def _model(nodes=(), initializers=(), sparse=(), functions=(), training=()) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    graph = helper.make_graph(list(nodes), "g", [x], [x], list(initializers))
    graph.sparse_initializer.extend(sparse)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.functions.extend(functions)
    model.training_info.extend(training)
    return model.SerializeToString()


def _graph(tensor: TensorProto) -> onnx.GraphProto:
    return helper.make_graph([], "sub", [], [], [tensor])


def _node(**attributes) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], **attributes)


def _deep(tensor: TensorProto, depth: int) -> onnx.GraphProto:
    graph = _graph(tensor)
    for _ in range(depth):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "sub", [], [])
    return graph


EXTERNAL = {
    "initializer": _model(initializers=[_external()]),
    "without the flag": _model(initializers=[_hidden()]),
    "attribute": _model([_node(value=_external())]),
    "list attribute": _model([_node(values=[_external(), _external()])]),
    "sparse initializer, values": _model(sparse=[_sparse(_external())]),
    "sparse initializer, indices": _model(sparse=[_sparse(None, _external())]),
    "sparse attribute": _model([_node(sparse_value=_sparse(_external()))]),
    "subgraph": _model([helper.make_node("If", ["x"], ["y"], then_branch=_graph(_external()))]),
    "deep subgraph": _model([helper.make_node("If", ["x"], ["y"], then_branch=_deep(_external(), 10))]),
    "function": _model(
        functions=[helper.make_function("d", "F", [], ["c"], [_node(value=_external())], [helper.make_opsetid("", 18)])]
    ),
    "function subgraph": _model(
        functions=[
            helper.make_function(
                "d",
                "F",
                [],
                ["c"],
                [helper.make_node("If", ["x"], ["y"], then_branch=_graph(_external()))],
                [helper.make_opsetid("", 18)],
            )
        ]
    ),
    "training": _model(training=[onnx.TrainingInfoProto(algorithm=_graph(_external()))]),
    "training initialization": _model(training=[onnx.TrainingInfoProto(initialization=_graph(_external()))]),
}


@pytest.mark.parametrize("place", EXTERNAL)
def test_external_data_is_refused_wherever_it_stands(place):
    with pytest.raises(UnsafeModel, match="keeps its data in another file, which is never followed"):
        onnx_file.check(EXTERNAL[place])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes without a graph"),
        (b"\xff\xff\xff\xff", "4 bytes that protobuf cannot read"),
        (b"\x08\x08:\xdb\x02\n", "6 bytes that protobuf cannot read; it is cut short or damaged"),
        (b"\x18\x00\x00\x00ORTM" + bytes(100), "in onnxruntime's own .ort format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "get it with git lfs pull"),
        (b"not a model at all", "not an ONNX model"),
    ],
)
def test_what_is_no_onnx_model_is_refused(data, words):
    with pytest.raises(UnsafeModel, match=words):
        onnx_file.check(data)


def test_a_refused_file_never_reaches_onnxruntime(monkeypatch):
    from normfold.serving.runtime import session
    from normfold.serving.runtime.devices import Device

    def reached(*_: object, **__: object) -> None:
        raise AssertionError("onnxruntime was asked")

    monkeypatch.setattr(session.ort, "InferenceSession", reached)
    for data in EXTERNAL.values():
        with pytest.raises(UnsafeModel):
            session.Session(data, Device("cpu"), session.SessionSettings())


def test_inputs_without_any_shape_are_found(models):
    assert onnx_file.check(models.identity(TensorProto.FLOAT, None)).unranked == {"x", "y"}
    assert onnx_file.check(models.identity(TensorProto.FLOAT, [])).unranked == set()
