"""Answers to equal requests, kept in memory for models whose config.pbtxt enables response_cache."""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from normfold.protos.datatypes import by_dtype
from normfold.serving.wire.tensors import to_raw

Array = NDArray[Any]

#: What an answer takes beside its arrays (key, list, table), and an array beside its numbers, in bytes.
ENTRY_BYTES, ARRAY_BYTES = 400, 200


@dataclass(frozen=True)
class Copied:
    """A copy of an answer."""

    arrays: list[Array]
    #: The memory that it takes, in bytes.
    size: int


class ResponseCache:
    """The last answers of one model version, in at most ``limit_bytes`` of memory; used on the event loop.

    ``key`` and ``copied`` may take long and change nothing; they may be called on any thread.
    """

    def __init__(self, limit_bytes: int = 64 << 20) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._answers: OrderedDict[bytes, Copied] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        """Whether an answer is kept under ``key``; it does not count as used by that."""
        return key in self._answers

    @staticmethod
    def key(feeds: Mapping[str, Array], outputs: Sequence[str]) -> bytes:
        """A digest of a request: names, types, shapes and bytes of the inputs, and names of the outputs."""
        digest = hashlib.blake2b(digest_size=32)
        for name, array in sorted(feeds.items()):
            head = f"{name}\0{array.dtype}\0{array.shape}\0".encode()
            body = to_raw(array, by_dtype(array.dtype))
            digest.update(len(head).to_bytes(8, "little") + head + len(body).to_bytes(8, "little"))
            digest.update(body)  # by itself: putting it behind the head would copy it
        digest.update("\0".join(outputs).encode())
        return digest.digest()

    def copied(self, answer: Sequence[Array]) -> Copied | None:
        """A copy of ``answer``, for ``keep``; None where it is too large to be kept.

        An answer is often a view of a whole batch, which would stay in memory with it.
        """
        size = _size(answer)
        return None if size > self._limit_bytes else Copied([array.copy() for array in answer], size)

    def find(self, key: bytes) -> list[Array] | None:
        """The answer that is kept under ``key``, or None."""
        if (found := self._answers.get(key)) is None:
            return None
        self._answers.move_to_end(key)
        return found.arrays

    def keep(self, key: bytes, copied: Copied | None) -> None:
        """Keep an answer, if none is kept under ``key`` yet; those used least recently make room for it."""
        if copied is None or key in self._answers:
            return
        self._answers[key] = copied
        self._held_bytes += copied.size
        while self._held_bytes > self._limit_bytes:
            _, dropped = self._answers.popitem(last=False)
            self._held_bytes -= dropped.size


def _size(answer: Sequence[Array]) -> int:
    """The bytes that copies of the arrays take: their numbers, the objects of BYTES elements, and the rest."""
    return ENTRY_BYTES + sum(ARRAY_BYTES + array.nbytes + _objects(array) for array in answer)


def _objects(array: Array) -> int:
    """The bytes that the elements of BYTES take beside the array."""
    # By a generator, which lets other threads have their turns; map would keep the interpreter until it is through.
    return sum(sys.getsizeof(element) for element in array.ravel()) if array.dtype == object else 0
