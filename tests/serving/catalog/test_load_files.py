"""The files that a load reads, and what tells apart their contents."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

from normfold.manifest import manifest
from normfold.serving.catalog.config import parse
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.load_files import digest, needed
from normfold.serving.catalog.loader import Loader
from normfold.serving.catalog.repository import ModelFolder, SentFolder
from normfold.serving.runtime.devices import Device

LABELLED = parse('output { name: "y" label_filename: "labels.txt" }')


def test_what_is_tried_is_what_is_loaded(tmp_path, models):
    config = parse(
        'output { name: "y" label_filename: "labels.txt" } model_warmup { name: "w" inputs { key: "x" value '
        '{ data_type: TYPE_FP32 dims: 4 input_data_file: "data" } } }'
    )
    models.write(tmp_path, models.scale())
    (tmp_path / "labels.txt").write_text("a", encoding="utf-8")
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "data").write_bytes(b"1234")
    found = needed(ModelFolder("m", tmp_path), config, 1)
    assert set(found.files) == {"1/model.onnx", "labels.txt", "warmup/data"}
    models.write(tmp_path, b"another")
    assert found.read_model(1, "model.onnx") == models.scale()


def test_model_file_and_labels_decide_the_answers_and_the_golden_input_does_not():
    first = {"1/model.onnx": b"a", "labels.txt": b"one", "1/golden.json": b"{}"}

    def of(**changed):
        return digest(SentFolder("m", first | changed), LABELLED, 1)

    assert of() == of(**{"1/golden.json": b"another"})
    assert len({of(), of(**{"1/model.onnx": b"b"}), of(**{"labels.txt": b"two"})}) == 3


def test_a_file_that_was_held_to_its_manifest_is_not_hashed_again(tmp_path, models, monkeypatch):
    data = models.scale()
    models.write(tmp_path, data)
    (tmp_path / "1" / "manifest.json").write_bytes(manifest({"model.onnx": data}))
    hashed, sha256 = [], hashlib.sha256

    def counting(given=b""):
        hashed.append(bytes(given))
        return sha256(given)

    monkeypatch.setattr(hashlib, "sha256", counting)
    with ThreadPoolExecutor(1) as executor:
        options = LoadOptions(Device("cpu"), cpus=1, inline_seconds=1.0)
        model = Loader(options, executor, None)._load(ModelFolder("m", tmp_path), parse(""), 1)
    assert hashed.count(data) == 1
    assert model.digest == digest(SentFolder("m", {"1/model.onnx": data}), parse(""), 1)
