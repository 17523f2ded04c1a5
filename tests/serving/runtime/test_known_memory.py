"""The memory of runs that is remembered from one load to the next."""

from __future__ import annotations

import os

import pytest

from normfold.serving.runtime import known_memory
from normfold.serving.runtime.run_memory import RunMemory

MEMORY = RunMemory(1000.5, 10.0, 1.25)


def test_what_was_measured_is_found_again_for_the_same_file_and_inputs(tmp_path):
    folder = tmp_path / "memory"
    assert known_memory.find(folder, b"model", 1) is None
    known_memory.keep(folder, b"model", 1, MEMORY)
    assert known_memory.find(folder, b"model", 1) == MEMORY
    assert known_memory.find(folder, b"other", 1) is None
    assert known_memory.find(folder, b"model", 2) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"row_bytes": 1, "row_input_bytes": 1, "power": NaN}',
        '{"row_bytes": 0, "row_input_bytes": 1}',
        '{"row_bytes": "1", "row_input_bytes": 1}',
        "[" * 5000,
        f'{{"row_bytes": {"9" * 400}, "row_input_bytes": 1}}',
    ],
)
def test_a_damaged_file_is_not_believed(tmp_path, text):
    known_memory.keep(tmp_path, b"model", 1, MEMORY)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert known_memory.find(tmp_path, b"model", 1) is None


def test_a_pipe_is_not_waited_for(tmp_path):
    known_memory.keep(tmp_path, b"model", 1, MEMORY)
    (file,) = tmp_path.iterdir()
    file.unlink()
    os.mkfifo(file)
    assert known_memory.find(tmp_path, b"model", 1) is None


def test_a_folder_that_cannot_be_written_costs_only_the_memory_of_it(tmp_path):
    (tmp_path / "file").write_text("")
    known_memory.keep(tmp_path / "file", b"model", 1, MEMORY)
    assert known_memory.find(tmp_path / "file", b"model", 1) is None
    known_memory.keep(None, b"model", 1, MEMORY)
    assert known_memory.find(None, b"model", 1) is None
