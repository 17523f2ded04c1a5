"""The memory that a server may have: the machine's, or the cgroup's if that is less."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from normfold.serving.process import memory_limit
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


@pytest.fixture
def resident(monkeypatch):
    """The memory of the process, as the test sets it."""
    memory = SimpleNamespace(bytes=0)
    monkeypatch.setattr(memory_limit, "resident_bytes", lambda: memory.bytes)
    return memory


def test_what_the_process_has_without_large_runs_is_not_for_them(resident):
    budget = MemoryBudget(1000)
    assert budget.room_bytes == 1000
    resident.bytes = 300
    budget.settle(200, busy=False)
    assert budget.room_bytes == 700
    with budget.reserved(100):
        resident.bytes = 400
        budget.settle(200, busy=False)
        assert budget.room_bytes == 700  # a run under way is not what the process has without runs
    budget.settle(200, busy=False)
    assert budget.room_bytes == 600
    assert MemoryBudget(1).room_bytes == 1


def test_memory_of_requests_does_not_count_when_the_models_change_while_they_are_answered(resident):
    budget = MemoryBudget(1000)
    resident.bytes = 300
    budget.settle(200, busy=False)
    resident.bytes = 900
    budget.settle(200, busy=True)
    assert budget.room_bytes == 700
    budget.settle(350, busy=True)  # a model more, of 150
    assert budget.room_bytes == 550
    budget.settle(100, busy=True)  # and two less
    assert budget.room_bytes == 800


def test_a_run_is_refused_only_after_another_look_at_the_memory(resident):
    budget = MemoryBudget(1000)
    resident.bytes = 900
    budget.settle(200, busy=False)
    assert not budget.fits(200)
    resident.bytes = 300
    assert budget.fits(200)
    assert budget.room_bytes == 700
