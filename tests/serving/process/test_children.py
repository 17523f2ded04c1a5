"""Processes whose parent was killed do not stay as zombies below the first process of a container."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
def test_orphans_are_collected_and_no_exit_code_of_an_own_child_is_taken():
    subprocess.run([sys.executable, "-c", PROGRAM], timeout=60, check=True)
