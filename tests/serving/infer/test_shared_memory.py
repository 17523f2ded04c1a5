"""The regions and the files that they keep open."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path

import pytest

from normfold.serving.errors import InvalidRequest, NotFound, OutOfMemory, PollFailed, TooManyRegions
from normfold.serving.infer import shared_memory as regions
from normfold.serving.infer import shared_objects
from normfold.serving.infer.shared_memory import SharedMemory


@pytest.fixture
def make():
    """Makes shared memory objects of 64 bytes, which only the server opens; their names."""
    made: list[Path] = []

    def one() -> str:
        made.append(Path(f"/dev/shm/normfold-{uuid.uuid4().hex}"))
        made[-1].write_bytes(bytes(64))
        return made[-1].name

    yield one
    for each in made:
        each.unlink()


@pytest.fixture
def memory():
    """Shared memory without regions."""
    one = SharedMemory(True)
    yield one
    one.unregister("")


def opened(name: str) -> int:
    """How often this process has the object open."""
    targets = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            targets.append(str(each.readlink()).removesuffix(" (deleted)"))
        except FileNotFoundError:  # that of the listing itself
            continue
    return targets.count(f"/dev/shm/{name}")


def test_regions_of_one_object_share_its_file_until_the_last_is_gone(make, memory):
    name = make()
    for number in range(300):
        memory.register(str(number), f"/{name}" if number % 2 else name, number % 8, 8)
        assert opened(name) == 1
    for number in range(299):
        memory.unregister(str(number))
    assert opened(name) == 1
    memory.write("299", 0, 8, b"12345678")
    assert memory.read("299", 0, 8) == b"12345678"
    memory.unregister("")
    assert opened(name) == 0


def test_a_region_that_is_refused_leaves_no_file_open(make, memory):
    name = make()
    with pytest.raises(InvalidRequest, match="which has 64"):
        memory.register("a", name, 0, 65)
    assert opened(name) == 0
    memory.register("a", name, 0, 64)
    with pytest.raises(InvalidRequest, match="which has 64"):
        memory.register("b", name, 0, 65)
    assert memory.read("a", 0, 64) == bytes(64)


def test_a_key_that_names_another_object_by_now_is_another_file(make, memory):
    name = make()
    path = Path("/dev/shm") / name
    memory.register("old", name, 0, 3)
    path.unlink()
    path.write_bytes(b"new")
    memory.register("new", name, 0, 3)
    assert (memory.read("old", 0, 3), memory.read("new", 0, 3)) == (bytes(3), b"new")


def test_more_objects_than_the_limit_of_open_files_allows_are_refused(make, memory, monkeypatch):
    monkeypatch.setattr(shared_objects, "most_shared_objects", lambda: 2)
    names = [make() for _ in range(3)]
    for name in names[:2]:
        memory.register(name, name, 0, 8)
    with pytest.raises(TooManyRegions, match=r"2 shared memory objects are open.*unregister regions.*ulimit -n"):
        memory.register("third", names[2], 0, 8)
    assert opened(names[2]) == 0
    memory.register("again", names[0], 8, 8)
    memory.unregister(names[1])
    memory.register("third", names[2], 0, 8)


def test_there_is_a_limit_of_regions_and_of_their_names(make, memory, monkeypatch):
    monkeypatch.setattr(regions, "MOST_REGIONS", 2)
    name = make()
    memory.register("a" * 1024, name, 0, 8)
    with pytest.raises(InvalidRequest, match="has 1025 characters; it may have 1024"):
        memory.register("a" * 1025, name, 0, 8)
    memory.register("b", name, 0, 8)
    with pytest.raises(TooManyRegions, match="2 shared memory regions are registered"):
        memory.register("c", name, 0, 8)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_said_as_what_they_are(make, memory, monkeypatch, code):
    def failing(*args: object) -> int:
        raise OSError(code, os.strerror(code))

    name = make()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shared_objects.os, "open", failing)
        with pytest.raises(TooManyRegions, match=rf"'{name}' cannot be opened: Too many open files.*ulimit -n"):
            memory.register("a", name, 0, 8)
    with pytest.raises(PollFailed, match=r"^Unable to open shared memory region: 'none-such'$"):
        memory.register("a", "none-such", 0, 8)


def test_a_region_that_is_unregistered_while_it_is_read_is_closed_after_that(make, memory, monkeypatch):
    name, pread = make(), os.pread
    memory.register("a", name, 0, 8)

    def slow(descriptor: int, size: int, offset: int) -> bytes:
        memory.unregister("a")
        assert opened(name) == 1
        return pread(descriptor, size, offset)

    monkeypatch.setattr(regions.os, "pread", slow)
    assert memory.read("a", 0, 8) == bytes(8)
    assert opened(name) == 0


def test_a_region_that_is_unregistered_after_it_was_checked_is_not_found(make, memory, monkeypatch):
    name = make()
    memory.register("a", name, 0, 8)
    region = memory.check("a", 0, 8)
    memory.unregister("a")
    monkeypatch.setattr(memory, "check", lambda *where: region)
    with pytest.raises(NotFound):
        memory.read("a", 0, 8)
    with pytest.raises(NotFound):
        memory.write("a", 0, 8, b"12345678")


def test_bytes_that_the_system_takes_in_parts_are_all_written_and_read(make, memory, monkeypatch):
    name, data = make(), bytes(range(64))
    memory.register("a", name, 0, 64)
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(regions.os, "pwrite", lambda file, part, at: pwrite(file, part[:10], at))
    monkeypatch.setattr(regions.os, "pread", lambda file, size, at: pread(file, min(size, 10), at))
    memory.write("a", 3, 61, data[3:])
    assert memory.read("a", 3, 61) == data[3:]


def test_an_answer_for_which_the_system_has_no_memory_is_an_error(make, memory, monkeypatch):
    """A client may make an object larger than /dev/shm: what does not fit was left out, and the answer was no error."""
    name = make()
    memory.register("a", name, 0, 64)
    pwrite = os.pwrite

    def full(file: int, part: memoryview, at: int) -> int:
        if at == 40:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(file, part[: 40 - at], at)

    monkeypatch.setattr(regions.os, "pwrite", full)
    with pytest.raises(OutOfMemory, match="64 bytes cannot be written to shared memory region 'a': No space left"):
        memory.write("a", 0, 64, bytes(64))
