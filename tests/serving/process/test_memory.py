"""Freed memory and garbage collection of a server process; each test starts its own process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def _printed(code: str, **environment: str) -> str:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**plain, **environment}, check=True
    )
    return done.stdout.strip()


KEEP = "from normfold.serving.process import memory; print(memory.keep_freed())"


def test_freed_memory_is_kept_where_the_c_library_is_glibc():
    glibc = "glibc" in os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else False
    assert _printed(KEEP) == str(glibc)


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_of_memory_goes_first(name):
    assert _printed(KEEP, **{name: "1"}) == "False"


def test_what_is_loaded_is_taken_out_of_garbage_collection():
    code = (
        "import gc; from normfold.serving.process import memory; memory.settle(); print(gc.get_freeze_count() > 1000)"
    )
    assert _printed(code) == "True"
