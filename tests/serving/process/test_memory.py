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


LEFT_OUT = """
import gc, weakref
from normfold.serving.process import memory

class Cycle:
    def __init__(self):
        self.itself = self

memory.COLLECTION_SECONDS = -1.0  # each is a long one
memory.FEW_LEFT = 0
memory.settle()
memory.settle()
alive = [Cycle() for _ in range(1000)]
gc.collect()
print(gc.get_freeze_count() >= memory._COLLECTIONS._settled + 1000, len(gc.callbacks))
gone = weakref.ref(alive[0])
alive.clear()
gc.collect()
print(gone() is None)
settled = memory._COLLECTIONS._settled
memory._COLLECTIONS._settled = 1  # as if many more were alive than at first
memory.collect()
print(gone() is None)
memory._COLLECTIONS._settled = settled
memory.collect()
print(gone() is None)
collect, gc.collect = gc.collect, None
memory.collect()  # nothing is left to collect
"""


def test_what_a_long_collection_has_left_is_not_visited_again_until_the_server_is_idle():
    assert _printed(LEFT_OUT).split() == ["True", "1", "False", "False", "True"]


FREED = """
import gc
from normfold.serving.process import memory

memory.COLLECTION_SECONDS = -1.0
memory.settle()
alive = [[] for _ in range(100_000)]
gc.collect()
print(gc.get_freeze_count() >= memory._COLLECTIONS._settled + 100_000)
alive.clear()
gc.collect = None
memory.collect()
"""


def test_nothing_is_collected_where_all_was_freed_without_it():
    """Such a collection visits all modules: nobody was answered for a fifth of a second."""
    assert _printed(FREED) == "True"


MANY = """
import gc
from normfold.serving.process import memory

memory.settle()
memory.COLLECTION_SECONDS = -1.0  # what a collection has visited is not visited again
visited = []
gc.callbacks.append(lambda phase, info: visited.append((phase, info["generation"], gc.get_freeze_count())))
alive = [[] for _ in range(300_000)]
frozen = [count for phase, generation, count in visited if generation == 2 and phase == "stop"]
print(len(frozen), max(after - before for before, after in zip(frozen, frozen[1:])))
"""


def test_a_collection_of_all_objects_visits_few_new_ones():
    """70,000 objects came together before: a collection of them took 40 ms."""
    collections, most = map(int, _printed(MANY).split())
    assert collections > 10
    assert most < 40_000
