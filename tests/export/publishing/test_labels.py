from __future__ import annotations

from pathlib import Path

import pytest

from normfold.export.errors import InputSpecError
from normfold.export.publishing.labels import read_labels


def test_a_file_that_is_no_text_and_a_folder_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(InputSpecError, match=r"x\.npy' are not UTF-8 text; expected one label a line$"):
        read_labels(tmp_path / "x.npy")
    with pytest.raises(InputSpecError, match=r"cannot be read: Is a directory$"):
        read_labels(tmp_path)
