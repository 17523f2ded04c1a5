"""The files that a user names, looked for before anything else is done."""

from __future__ import annotations

import pytest

from normfold.export.errors import ExportError, SourceError
from normfold.export.sources.named import require_files, require_graph


def test_why_a_file_cannot_be_looked_at_is_left_to_its_reader_to_say(tmp_path):
    (tmp_path / "file").touch()
    for unreachable in (tmp_path / "file" / "weights.pt", tmp_path / ("w" * 300)):
        require_files(weights=[unreachable], labels=unreachable)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for options in ({"weights": [tmp_path / "link"]}, {"labels": tmp_path / "link"}):
        with pytest.raises(ExportError, match="no file of"):
            require_files(**options)


def test_what_is_no_file_is_not_proposed_in_place_of_itself(tmp_path):
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(SourceError, match=r"no file '.*/net\.onnx'$"):
        require_graph(tmp_path / "net.onnx")
    (tmp_path / "nets.onnx").touch()
    with pytest.raises(SourceError, match=r"did you mean '.*/nets\.onnx'"):
        require_graph(tmp_path / "net.onnx")
