"""System shared memory: regions of POSIX shared memory that requests may name instead of sending bytes.

A region is read and written through its file and never mapped. If a client shrinks it during a request, that request
gets an error; a mapping would kill the server. Offsets and sizes are Python's integers, which do not overflow.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from normfold.protos import grpc_service as pb
from normfold.serving.errors import AlreadyExists, InvalidRequest, NotFound, PollFailed, Unimplemented
from normfold.serving.wording import quoted

#: The folder in which Linux keeps POSIX shared memory.
FOLDER = Path("/dev/shm")

#: A key as shm_open takes it: one name, with or without a slash in front.
_KEY = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9._+@-]{0,250})")


@dataclass(frozen=True)
class Region:
    """A registered part of a shared memory object; ``descriptor`` is its open file."""

    key: str
    offset: int
    size: int
    descriptor: int


class SharedMemory:
    """The registered regions, by their names."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Register ``size`` bytes at ``offset`` of the object ``key``.

        Raises AlreadyExists; PollFailed when the object cannot be opened; InvalidRequest when it is too small; and
        Unimplemented where shared memory is off.
        """
        if not self.enabled:
            raise Unimplemented("system shared memory is off: start the server with --shared-memory on")
        if not name:
            raise InvalidRequest("a shared memory region needs a name")
        if name in self._regions:
            raise AlreadyExists(f"shared memory region {quoted(name)} already in manager")
        descriptor = _open(key)
        if size < 1 or offset + size > os.fstat(descriptor).st_size:
            held = os.fstat(descriptor).st_size
            os.close(descriptor)
            raise InvalidRequest(
                f"failed to register shared memory region {quoted(name)}: {size} bytes at offset {offset} do not lie "
                f"in {quoted(key)}, which has {held}"
            )
        self._regions[name] = Region(key, offset, size, descriptor)

    def unregister(self, name: str) -> None:
        """Forget the region ``name``, or all regions if it is ""; an unknown name is no error."""
        for each in [name] if name else list(self._regions):
            if (region := self._regions.pop(each, None)) is not None:
                os.close(region.descriptor)

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
        data = os.pread(region.descriptor, size, region.offset + offset)
        if len(data) != size:
            raise InvalidRequest(f"shared memory region {quoted(name)} has become smaller than was registered")
        return data

    def write(self, name: str, offset: int, size: int, data: bytes) -> None:
        """Write ``data`` at ``offset`` of the region ``name``. Raises InvalidRequest for more than ``size`` bytes."""
        region = self.check(name, offset, size)
        if len(data) > size:
            raise InvalidRequest(
                f"shared memory size specified with the request for an output ({size} bytes) should be at least "
                f"{len(data)} bytes to hold the results"
            )
        if os.fstat(region.descriptor).st_size < region.offset + offset + len(data):
            raise InvalidRequest(f"shared memory region {quoted(name)} has become smaller than was registered")
        os.pwrite(region.descriptor, data, region.offset + offset)


def _open(key: str) -> int:
    match = _KEY.fullmatch(key)
    try:
        if match is None:
            raise FileNotFoundError
        descriptor = os.open(FOLDER / match[1], os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        raise PollFailed(f"Unable to open shared memory region: {quoted(key)}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PollFailed(f"Unable to open shared memory region: {quoted(key)}")
    return descriptor
