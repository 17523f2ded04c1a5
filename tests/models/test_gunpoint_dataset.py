from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normfold.models.errors import DataError
from normfold.models.gunpoint.dataset import read

HEADER = "#a comment: with a colon\n@problemName GunPoint\n@classLabel true 1 2\n@data\n"


def test_series_and_classes_are_read_after_the_header(tmp_path: Path) -> None:
    file = tmp_path / "x.ts"
    file.write_text(HEADER + "-0.5,1e-3,2:2\n\n1,2,3:1\n", encoding="utf-8")
    data = read(file)
    assert data.series.dtype == np.float32
    assert np.array_equal(data.series, np.array([[[-0.5, 1e-3, 2]], [[1, 2, 3]]], np.float32))
    assert data.classes.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; give the folder that holds GunPoint_TRAIN.ts and GunPoint_TEST.ts"),
        ("1,2,3:1\n", "no line '@data'"),
        (HEADER, "no series below '@data'"),
        (HEADER + "1,2:1\n1,2\n", "line 6: ends in '1,2'; expected comma-separated values, ':', then 1 or 2"),
        (HEADER + "1,2:3\n", "line 5: ends in '1,2:3'"),
        (HEADER + "1,two:1\n", "line 5: could not convert string to float: 'two'"),
        (HEADER + "1,2:1\n1,2,3:2\n", "line 6: 3 values, the first series has 2; expected equal lengths"),
        (HEADER + "1,nan:1\n", "line 5: a value that is not finite"),
    ],
)
def test_a_file_that_is_not_the_data_is_refused_with_its_path(
    tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "x.ts"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read(file)
    assert str(file) in str(caught.value)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)
