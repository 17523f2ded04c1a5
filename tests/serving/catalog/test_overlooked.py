"""Folders that were meant as models and are none are named, with the reason."""

from __future__ import annotations

import logging

import grpc
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.catalog.overlooked import overlooked
from normfold.serving.catalog.repository import Repository


@pytest.fixture
def root(tmp_path, models):
    models.write(tmp_path / "a", models.scale())
    models.write(tmp_path / "a", models.scale(), "v2")
    models.write(tmp_path / "b", models.scale(), "v1")
    models.write(tmp_path / "c d", models.scale())
    models.write(tmp_path / ".hidden", models.scale(), "v1")
    models.write(tmp_path / "g", models.scale(), "v1", "max_batch_size: 4")
    (tmp_path / "loose.onnx").write_bytes(models.scale())
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "net.onnx").write_bytes(models.scale())
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "README").write_text("no model", encoding="utf-8")
    return tmp_path


def test_each_folder_with_a_model_file_that_is_not_served_has_a_reason(root):
    repository = Repository(root)
    found = overlooked(repository, repository.models())
    assert found == {
        "b": "'v1' is no version number; expected b/1/model.onnx",
        "c d": "a model's name has letters, digits, dots, dashes and underscores only, at most 128",
        "f": "it has no version folder; expected f/1/net.onnx",
        "loose.onnx": "it lies beside the models; expected loose/1/model.onnx",
    }


def test_a_repository_of_one_model_overlooks_nothing(root):
    assert overlooked(Repository(root / "a"), ["a"]) == {}
    assert overlooked(Repository(root / "f" / "net.onnx"), ["net"]) == {}


def test_the_log_and_the_answer_to_a_load_say_why(serve, root, caplog):
    with caplog.at_level(logging.WARNING, "normfold"), serve(root) as server:
        load = pb.RepositoryModelLoadRequest(model_name="b")
        with pytest.raises(grpc.RpcError) as caught:
            server.call("RepositoryModelLoad", load)
    assert "'v1' is no version number; expected b/1/model.onnx" in caught.value.details()
    assert "folder 'b' is not served: 'v1' is no version number" in caplog.text
    assert "file 'loose.onnx' is not served: it lies beside the models" in caplog.text
    assert "failed to load 'g': no version to serve: 'v1' is no version number" in caplog.text
