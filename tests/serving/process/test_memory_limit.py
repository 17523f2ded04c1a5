"""The memory that a server may have: the machine's, or the cgroup's if that is less."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from normfold.serving.process.memory_limit import MemoryBudget, available_bytes, default_limit_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="ascii")


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {}, MACHINE),
        ("0::/\n", {"memory.max": "max\n"}, MACHINE),
        ("0::/\n", {"memory.max": "1048576\n"}, 1 << 20),
        ("0::/a/b\n", {"a/memory.max": "2097152\n", "a/b/memory.max": "max\n"}, 2 << 20),
        ("0::/a/b\n", {"a/memory.max": "2097152\n", "a/b/memory.max": "1048576\n"}, 1 << 20),
        ("5:memory:/x\n4:cpu:/y\n", {"memory/x/memory.limit_in_bytes": "4194304\n"}, 4 << 20),
        ("5:memory:/x\n", {"memory/x/memory.limit_in_bytes": "9223372036854771712\n"}, MACHINE),
        ("0::/\n", {"memory.max": "nonsense"}, MACHINE),
    ],
)
def test_the_least_limit_counts(tmp_path, own, files, limit):
    root, process = tmp_path / "cgroup", tmp_path / "own"
    written(process, own)
    root.mkdir()
    for name, text in files.items():
        written(root / name, text)
    assert available_bytes(root, process) == limit


def test_workers_share_the_memory():
    assert default_limit_bytes(4) == default_limit_bytes() // 4 <= available_bytes() // 4


def test_what_the_process_has_without_large_runs_is_not_for_them():
    budget = MemoryBudget(1 << 40)
    assert budget.room_bytes == 1 << 40
    budget.settle()
    assert 1 << 20 < (1 << 40) - budget.room_bytes < 1 << 35
    base = budget.room_bytes
    with budget.reserved(1 << 20):
        kept = bytearray(64 << 20)
        budget.settle()
        assert budget.room_bytes == base  # a run under way is not what the process has without runs
    del kept
    assert MemoryBudget(1).room_bytes == 1
