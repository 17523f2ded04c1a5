"""Processes are started although the working directory is gone, and orphans do not stay as zombies in a container."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from normfold.serving.process import children

#: Takes the orphans below it, as the first process of a container does; prints what is left of three children.
PROGRAM = """
import asyncio, ctypes, os, subprocess, sys
from normfold.serving.process.children import collect_orphans

PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def orphan():
    child = "import os; pid = os.fork(); pid and print(pid)"
    return int(subprocess.run([sys.executable, "-c", child], stdout=subprocess.PIPE, check=True).stdout)


async def main():
    collecting = asyncio.create_task(collect_orphans(0.01))
    orphans = [orphan(), orphan()]
    own = [await asyncio.create_subprocess_exec("sh", "-c", f"exit {code}") for code in range(1, 9)]
    assert [await one.wait() for one in own] == list(range(1, 9))
    while any(os.path.exists(f"/proc/{pid}") for pid in orphans):
        await asyncio.sleep(0.01)
    assert not collecting.done()


asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans below a process that is not the first: on Linux only")
@pytest.mark.parametrize(("path", "flags"), [(["/x"], ["-P"]), (["", "/x"], [])])
def test_a_process_is_started_although_the_working_directory_was_deleted(tmp_path, monkeypatch, path, flags):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "path", path)
    assert children.python("m", "a") == [sys.executable, *flags, "-m", "m", "a"]
    assert children.environment()["PYTHONPATH"].split(os.pathsep) == path


def test_orphans_are_collected_and_no_exit_code_of_an_own_child_is_taken():
    subprocess.run([sys.executable, "-c", PROGRAM], timeout=60, check=True)
