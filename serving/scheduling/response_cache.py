"""Answers to equal requests, kept in memory for models whose config.pbtxt enables response_cache."""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from normfold.protos.datatypes import by_dtype
from normfold.serving.wire.tensors import to_raw

Array = NDArray[Any]

#: What an answer takes beside its arrays (key, list, table), and an array beside its numbers, in bytes.
ENTRY_BYTES, ARRAY_BYTES = 400, 200


class ResponseCache:
    """The last answers of one model version, in at most ``limit_bytes`` of memory."""

    def __init__(self, limit_bytes: int = 64 << 20) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._answers: OrderedDict[bytes, list[Array]] = OrderedDict()

    @staticmethod
    def key(feeds: Mapping[str, Array], outputs: Sequence[str]) -> bytes:
        """A digest of a request: names, types, shapes and bytes of the inputs, and names of the outputs."""
        digest = hashlib.blake2b(digest_size=32)
        for name, array in sorted(feeds.items()):
            head = f"{name}\0{array.dtype}\0{array.shape}\0".encode()
            body = to_raw(array, by_dtype(array.dtype))
            digest.update(len(head).to_bytes(8, "little") + head + len(body).to_bytes(8, "little") + body)
        digest.update("\0".join(outputs).encode())
        return digest.digest()

    def find(self, key: bytes) -> list[Array] | None:
        """The answer that is kept under ``key``, or None."""
        if key in self._answers:
            self._answers.move_to_end(key)
        return self._answers.get(key)

    def keep(self, key: bytes, answer: list[Array]) -> None:
        """Keep a copy of ``answer``; the least recently used answers are dropped until all fit into the limit.

        An answer is often a view of a whole batch, which would stay in memory with it.
        """
        size = _size(answer)
        if size > self._limit_bytes or key in self._answers:
            return
        self._answers[key] = [array.copy() for array in answer]
        self._held_bytes += size
        while self._held_bytes > self._limit_bytes:
            _, dropped = self._answers.popitem(last=False)
            self._held_bytes -= _size(dropped)


def _size(answer: list[Array]) -> int:
    """The bytes that copies of the arrays take: their numbers, the objects of BYTES elements, and the rest."""
    return ENTRY_BYTES + sum(
        ARRAY_BYTES + array.nbytes + (sum(map(sys.getsizeof, array.ravel())) if array.dtype == object else 0)
        for array in answer
    )
