"""The sentence about the machine names the vector instructions that run times depend on."""

from __future__ import annotations

import pytest
from benches.machine import instruction_sets, machine


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("model name\t: x\nflags\t\t: fpu avx avx2 avx512f avx512_vnni\n", ["AVX2", "AVX-512", "AVX-512 VNNI"]),
        ("flags\t\t: fpu avx2x\nflags\t\t: avx2\n", []),
        ("Features\t: fp asimd asimddp\n", ["NEON", "dot product"]),
        ("", []),
    ],
)
def test_instruction_sets_are_read_from_the_first_processor(tmp_path, text, found):
    (tmp_path / "cpuinfo").write_text(text)
    assert instruction_sets(tmp_path / "cpuinfo") == found
    assert instruction_sets(tmp_path / "none") == []


def test_the_sentence_is_whole():
    assert machine().startswith("Measured on ")
    assert machine().count("(") == machine().count(")") == 1
