"""Labels that are not one name for each class are served, with a warning in the log."""

from __future__ import annotations

import logging

import pytest

from normfold.protos import model_config as mc
from normfold.serving.catalog import labels
from normfold.serving.catalog.repository import ModelFolder
from normfold.serving.errors import ConfigError


def config(*dims: int) -> mc.ModelConfig:
    full = mc.ModelConfig(max_batch_size=8)
    full.output.add(name="y", data_type=mc.TYPE_FP32, dims=dims, label_filename="l.txt")
    full.output.add(name="z", data_type=mc.TYPE_FP32, dims=dims)
    return full


@pytest.mark.parametrize(
    ("text", "dims", "warnings"),
    [
        ("a\nb\nc\nd\n", [4], []),
        ("a\nb\nc\nd\n", [2, 2], []),
        ("a\nb\n", [-1], []),
        ("a\nb\nc\n", [4], ["l.txt has 3 labels, output 'y' 4 classes: the others are answered by number"]),
        ("a\nb\nc\n", [2], ["l.txt has 3 labels, output 'y' 2 classes: is it the file of another model?"]),
        ("a\nb\na\n", [3], ["l.txt has 'a' more than once"]),
        ("a\na\nb\nb\nc\nc\nd\nd\n", [8], ["l.txt has 'a', 'b', 'c' and others more than once"]),
        ("a\n\nb\n", [3], ["l.txt has an empty line, which is the name of class 1"]),
    ],
)
def test_odd_labels_are_loaded_with_a_warning(tmp_path, caplog, text, dims, warnings):
    (tmp_path / "l.txt").write_text(text, encoding="utf-8-sig")
    with caplog.at_level(logging.WARNING):
        found = labels.read(ModelFolder("m", tmp_path), config(*dims))
    assert found == {"y": tuple(text.split("\n")[:-1])}
    assert [record.getMessage() for record in caplog.records] == [f"model 'm': {warning}" for warning in warnings]


def test_labels_that_are_no_text_are_an_error(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"label_filename 'l\.txt' is not UTF-8 text"):
        labels.read(ModelFolder("m", tmp_path), config(4))
