"""Runs of a model within the server's memory: large batches in parts, and none that cannot fit.

An ordinary run keeps its memory for the next one, until the server is idle. A run that takes more than PART_BYTES is
cut into parts of fewer rows, if the model has a batch axis (``max_batch_size``), for which config.pbtxt says that rows
do not depend on each other. One row that takes more is run alone and gives its memory back; if it takes more than the
server may have, it is refused before it is run. The strings that a graph makes are part of what a run takes.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.serving.errors import InvalidRequest, NoMemory
from normfold.serving.process.memory_limit import MemoryBudget
from normfold.serving.runtime.run_memory import RunMemory
from normfold.serving.runtime.session import BYTES, Session
from normfold.serving.runtime.stop import Stop
from normfold.serving.runtime.text_growth import OBJECT_BYTES, TextGrowth
from normfold.serving.wording import dims

Array = NDArray[Any]

#: The memory that a run should not exceed, in bytes, as ``run_memory`` measures it. Larger parts are not faster: their
#: activations have left the CPU's caches long before.
PART_BYTES = 64 << 20

#: When the server is idle, a session keeps the memory of runs that took at most KEPT_BYTES. Answers are in that memory
#: until their clients take them, so more than KEPT_ANSWERS at a time make a session keep more.
KEPT_BYTES = 8 << 20
KEPT_ANSWERS = 8

#: The bytes that the model gets in place of one that is no UTF-8.
BYTES_OF_BYTE = 4

#: Labels that take at most this part of the measured memory of a row are not counted: the measured one is too much.
LITTLE = 1 / 16


class SizedRun:
    """The run of a session; called like ``Session.run``."""

    def __init__(
        self, session: Session, memory: RunMemory, budget: MemoryBudget, batched: bool, sample: Mapping[str, Array]
    ) -> None:
        """``batched``: the first axis of every input and output is that of the batch. ``sample``: inputs of a run."""
        self._session, self._memory, self._budget, self._batched = session, memory, budget, batched
        self._small = {name: array[:1] for name, array in sample.items()} if batched else dict(sample)
        self._kept_bytes = memory.most_input_bytes(KEPT_BYTES)
        #: KEPT_ANSWERS answers to inputs of at most this size keep no more than KEPT_BYTES.
        self._several_bytes = memory.most_input_bytes(KEPT_BYTES / KEPT_ANSWERS)
        #: The answers to larger inputs that are in memory, and the most at a time since memory was last given back.
        self._answers: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()
        self._numbers, self._most_answers = itertools.count(), 0
        #: The largest inputs since memory was last given back, in bytes.
        self._largest = 0
        #: Output -> the rows of a part of another size than most, in which it had as many rows as the inputs.
        self._by_rows: dict[str, int] = {}
        #: A run with inputs of at most this size takes at most PART_BYTES: unless the graph makes strings, it is
        #: neither cut nor refused. In bytes.
        self._ordinary_bytes = memory.most_input_bytes(PART_BYTES)
        #: What the strings that the graph makes take; None: little or nothing, or nobody can know.
        self._growth: TextGrowth | None = None
        #: The most strings that it makes for each row (without a batch axis: for each run).
        self._most_texts = math.inf
        if (growth := session.text_growth) is not None and math.isfinite(growth.times):
            self._most_texts = _most_texts(session, growth, batched)
            only_labels = not growth.times and not growth.copies
            is_little = growth.bytes(0, 0, self._most_texts) <= memory.row_bytes * LITTLE
            self._growth = None if only_labels and is_little else growth

    def check(self, feeds: Mapping[str, Array], rows: int) -> None:
        """Raise NoMemory if the run of these inputs, or of one row of them, takes more memory than there is for it."""
        size = _bytes(feeds)
        if size <= self._ordinary_bytes and self._growth is None:
            return
        texts = self._text_bytes(feeds, rows, 1 if self._batched else rows)
        if self._batched:
            size, rows = size // max(rows, 1), 1
        need = self._memory.of(rows, size) + texts
        if not self._budget.fits(need):
            room = self._budget.room_bytes
            what = f"one row of this request ({size} bytes)" if self._batched else f"this request ({size} bytes)"
            what += ", with the strings that the model makes," if texts else ""
            raise NoMemory(
                f"the run of {what} would take about {_mib(need)} MiB of memory, and this server has {_mib(room)} MiB "
                f"for runs; send a shorter input, or start the server with a larger --memory-limit"
            )

    def check_room(self, size: int, what: str) -> None:
        """Raise NoMemory if ``what``, ``size`` bytes that are not in memory yet, is more than there is for runs."""
        if size > self._ordinary_bytes:
            check_room(self._budget, size, what)

    def __call__(self, feeds: Mapping[str, Array], outputs: Sequence[str], stop: Stop | None = None) -> list[Array]:
        """The outputs named in ``outputs``; ``stop`` ends the run early. Raises what the session raises."""
        size = _bytes(feeds)
        if size <= self._several_bytes and self._growth is None:
            return self._session.run(feeds, outputs, stop=stop)
        self._largest = max(self._largest, size)
        answer = self._run(feeds, outputs, size, stop)
        if answer:
            self._answers[next(self._numbers)] = answer[0]
        self._most_answers = max(self._most_answers, len(self._answers))
        return answer

    def _run(self, feeds: Mapping[str, Array], outputs: Sequence[str], size: int, stop: Stop | None) -> list[Array]:
        if size <= self._ordinary_bytes and self._growth is None:
            return self._session.run(feeds, outputs, stop=stop)
        rows = len(next(iter(feeds.values()))) if self._batched else 1
        most = self.part_rows(rows, size, self._text_bytes(feeds, rows, rows))
        if most >= rows:
            return self._run_alone(feeds, outputs, rows, size, stop)
        answers, at = [], 0
        counts = self._counts(rows, most, outputs, size)
        for count in counts:
            part = {name: array[at : at + count] for name, array in feeds.items()}
            answers.append(self._run_alone(part, outputs, count, _bytes(part), stop))
            if any(array.shape[:1] != (count,) for array in answers[-1]):
                raise InvalidRequest(f"an output does not have the {count} rows of the input, so it cannot be batched")
            at += count
        if other := [count for count in counts if count != most]:
            self._by_rows.update(dict.fromkeys(outputs, other[0]))
        return answers[0] if len(answers) == 1 else [_joined(parts) for parts in zip(*answers, strict=True)]

    def _counts(self, rows: int, most: int, outputs: Sequence[str], size: int) -> list[int]:
        """The rows of each part of a run of ``rows`` rows with inputs of ``size`` bytes: ``most`` in each.

        An output may have a fixed number of rows that happens to be ``most``; only a part of another size shows that.
        So if all parts would be equal, and an output was not seen with another size yet, the first part has one row
        less, or two rows instead of one.
        """
        first = most
        if rows % most == 0 and any(self._by_rows.get(name, most) == most for name in outputs):
            two = self._memory.of(2, 2 * size // rows)
            first = most - 1 if most > 1 else 2 if self._budget.fits(two) else 1
        rest, left = divmod(rows - first, most)
        return [first, *[most] * rest, *([left] if left else [])]

    def give_back(self) -> None:
        """Give back the memory that the session keeps for its next run, if that is much."""
        if self._largest > self._kept_bytes or self._most_answers > KEPT_ANSWERS:
            self._largest = self._most_answers = 0
            self._session.run(self._small, [self._session.outputs[0].name], give_back=True)

    def part_rows(self, rows: int, size: int, texts: float = 0.0) -> int:
        """The rows of each part of a run of ``rows`` rows with inputs of ``size`` bytes and ``texts`` that it makes."""
        whole = self._memory.of(rows, size) + texts
        return rows if not self._batched or whole <= PART_BYTES else max(1, int(rows * PART_BYTES / whole))

    def _run_alone(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], rows: int, size: int, stop: Stop | None
    ) -> list[Array]:
        need = self._memory.of(rows, size) + self._text_bytes(feeds, rows, rows)
        if need <= PART_BYTES:
            return self._session.run(feeds, outputs, stop=stop)
        with self._budget.reserved(need):
            return self._session.run(feeds, outputs, give_back=True, stop=stop)

    def _text_bytes(self, feeds: Mapping[str, Array], rows: int, part: int) -> float:
        """The bytes of the strings that the graph makes of the longest ``part`` of these ``rows``."""
        if self._growth is None:
            return 0.0
        texts = [text for array in feeds.values() if array.dtype == object for text in array.ravel()]
        lengths = [len(text) if text.isascii() else BYTES_OF_BYTE * len(text) for text in texts]
        longest, share = max(lengths, default=0), part / max(rows, 1)
        elements = self._memory.of(part, int(_bytes(feeds) * share)) / OBJECT_BYTES
        elements = min(elements, self._most_texts * (part if self._batched else 1))
        return self._growth.bytes(min(sum(lengths), math.ceil(longest * len(lengths) * share)), longest, elements)


def check_room(budget: MemoryBudget, size: int, what: str) -> None:
    """Raise NoMemory if ``what``, ``size`` bytes that are not in memory yet, is more than ``budget`` has for runs."""
    if not budget.fits(size):
        room = _mib(budget.room_bytes)
        raise NoMemory(
            f"{what} would take {_mib(size)} MiB of memory, and this server has {room} MiB for runs; ask "
            "with fewer, or start the server with a larger --memory-limit"
        )


def _most_texts(session: Session, growth: TextGrowth, batched: bool) -> float:
    """The most strings that the graph makes for each row, or for each run, by its outputs' shapes; inf: unknown."""
    if not growth.tensors:
        return math.inf
    count = 0
    for shape in [tensor.shape for tensor in session.outputs if tensor.datatype is BYTES]:
        if shape is None or (batched and shape[:1] != (-1,)):
            return math.inf
        one = shape[1:] if batched else shape
        if -1 in one:
            return math.inf
        count += math.prod(one)
    return growth.tensors * count


def _joined(parts: Sequence[Array]) -> Array:
    """One output of all parts. Raises InvalidRequest where its rows have other sizes in some of them."""
    first = parts[0].shape[1:]
    for part in parts:
        if part.shape[1:] != first:
            raise InvalidRequest(
                f"an output has rows of {dims(first)} in one part of the batch and of {dims(part.shape[1:])} in "
                "another, so they cannot be joined; send fewer rows"
            )
    return np.concatenate(parts)


def _bytes(feeds: Mapping[str, Array]) -> int:
    return sum([array.nbytes for array in feeds.values()])


def _mib(size: float) -> int:
    return int(size) >> 20
