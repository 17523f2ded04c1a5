"""System shared memory: regions of POSIX shared memory that requests may name instead of sending bytes.

A region is read and written through its file and never mapped. If a client shrinks it during a request, that request
gets an error; a mapping would kill the server. Offsets and sizes are Python's integers, which do not overflow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from normfold.protos import grpc_service as pb
from normfold.serving.errors import AlreadyExists, InvalidRequest, NotFound, OutOfMemory, TooManyRegions, Unimplemented
from normfold.serving.infer.shared_objects import SharedObject, SharedObjects
from normfold.serving.wording import quoted

#: Regions that are registered at the same time, and characters of the name of one.
MOST_REGIONS, NAME_CHARACTERS = 4096, 1024


@dataclass(frozen=True)
class Region:
    """A registered part of a shared memory object."""

    key: str
    offset: int
    size: int
    shared: SharedObject


class SharedMemory:
    """The registered regions, by their names."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._regions: dict[str, Region] = {}
        self._objects = SharedObjects()

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Register ``size`` bytes at ``offset`` of the object ``key``.

        Raises AlreadyExists; PollFailed when the object cannot be opened; InvalidRequest when it is too small;
        TooManyRegions; and Unimplemented where shared memory is off.
        """
        if not self.enabled:
            raise Unimplemented("system shared memory is off: start the server with --shared-memory on")
        if not name:
            raise InvalidRequest("a shared memory region needs a name")
        if len(name) > NAME_CHARACTERS:
            raise InvalidRequest(
                f"the name of a shared memory region has {len(name)} characters; it may have {NAME_CHARACTERS}"
            )
        if name in self._regions:
            raise AlreadyExists(f"shared memory region {quoted(name)} already in manager")
        if len(self._regions) >= MOST_REGIONS:
            raise TooManyRegions(
                f"{MOST_REGIONS} shared memory regions are registered, and no more may be: unregister those that are "
                "not used, or register large ones and name offsets in them"
            )
        shared = self._objects.open(key)
        if size < 1 or offset + size > shared.size():
            held = shared.size()
            self._objects.leave(shared)
            raise InvalidRequest(
                f"failed to register shared memory region {quoted(name)}: {size} bytes at offset {offset} do not lie "
                f"in {quoted(key)}, which has {held}"
            )
        self._regions[name] = Region(key, offset, size, shared)

    def unregister(self, name: str) -> None:
        """Forget the region ``name``, or all regions if it is ""; an unknown name is no error."""
        for each in [name] if name else list(self._regions):
            if (region := self._regions.pop(each, None)) is not None:
                self._objects.leave(region.shared)

    def status(self, name: str) -> pb.SystemSharedMemoryStatusResponse:
        """The state of the region ``name``, or of all regions if it is "". Raises NotFound."""
        if name and name not in self._regions:
            raise NotFound(f"Unable to find system shared memory region: {quoted(name)}")
        response = pb.SystemSharedMemoryStatusResponse()
        for each, region in self._regions.items():
            if name in ("", each):
                status = response.regions[each]
                status.name, status.key, status.offset, status.byte_size = each, region.key, region.offset, region.size
        return response

    def check(self, name: str, offset: int, size: int) -> Region:
        """The region ``name``. Raises NotFound, or InvalidRequest unless ``size`` bytes at ``offset`` lie in it."""
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: {quoted(name)}")
        if offset < 0 or offset >= region.size:
            raise InvalidRequest(f"Invalid offset for shared memory region: {quoted(name)}: {offset} of {region.size}")
        if size < 0 or offset + size > region.size:
            raise InvalidRequest(
                f"Invalid offset + byte size for shared memory region: {quoted(name)}: "
                f"{offset} + {size} is more than its {region.size} bytes"
            )
        return region

    def read(self, name: str, offset: int, size: int) -> bytes:
        """``size`` bytes of the region ``name`` from ``offset`` on."""
        region = self.check(name, offset, size)
        with self._objects.used(region.shared) as descriptor:
            parts = list(_parts(_there(descriptor, name), size, region.offset + offset))
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(data) != size:
            raise InvalidRequest(f"shared memory region {quoted(name)} has become smaller than was registered")
        return data

    def write(self, name: str, offset: int, size: int, data: bytes | memoryview) -> None:
        """Write ``data`` at ``offset`` of the region ``name``.

        Raises InvalidRequest for more than ``size`` bytes, and OutOfMemory where the system has no memory for them.
        """
        region = self.check(name, offset, size)
        if len(data) > size:
            raise InvalidRequest(
                f"shared memory size specified with the request for an output ({size} bytes) should be at least "
                f"{len(data)} bytes to hold the results"
            )
        with self._objects.used(region.shared) as descriptor:
            if os.fstat(_there(descriptor, name)).st_size < region.offset + offset + len(data):
                raise InvalidRequest(f"shared memory region {quoted(name)} has become smaller than was registered")
            try:
                _write(descriptor, memoryview(data), region.offset + offset)
            except OSError as error:
                raise OutOfMemory(
                    f"{len(data)} bytes cannot be written to shared memory region {quoted(name)}: "
                    f"{os.strerror(error.errno or 0)}; free some, or give the server more (--shm-size of Docker)"
                ) from error


def _parts(descriptor: int, size: int, at: int) -> Iterator[bytes]:
    """Up to ``size`` bytes from ``at`` on; the system reads at most 2 GiB at a time."""
    while size and (part := os.pread(descriptor, size, at)):
        yield part
        size, at = size - len(part), at + len(part)


def _write(descriptor: int, data: memoryview, at: int) -> None:
    """Write all of ``data``: the system writes a part where it has memory for no more, and at most 2 GiB at a time."""
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


def _there(descriptor: int, name: str) -> int:
    """``descriptor``. Raises NotFound if the region was unregistered since it was checked."""
    if descriptor < 0:
        raise NotFound(f"Unable to find shared memory region: {quoted(name)}")
    return descriptor
