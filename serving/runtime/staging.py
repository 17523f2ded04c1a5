"""Runs on a GPU for inputs of any shape: their numbers pass through host memory that stays at its place.

    request ──► page-locked memory ──► GPU ──► page-locked memory ──► answer

From ordinary memory CUDA copies twice, and waits for the copies. `bindings.Resident` is for models of fixed shapes,
which replay a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Memory = Callable[[int], Array]
#: Shape and dtype of an array.
ArrayType = tuple[tuple[int, ...], "np.dtype[Any]"]

#: Every array begins at a multiple of this number of bytes.
ALIGNMENT = 64

#: Shapes of inputs for which the types of the outputs are remembered. A table that would exceed it is cleared.
LIMIT = 1024


class Staged:
    """A session, with a lane of memory for each of its runs at a time; lanes are made when they are first needed.

    ``memory`` makes an array of as many bytes as it is asked for. ``run`` may be called from several threads.
    """

    def __init__(self, session: Any, memory: Memory) -> None:
        self._session, self._memory = session, memory
        self._idle: list[_Lane] = []
        #: Shapes of inputs and names of outputs -> types of the outputs; empty where they depend on the numbers.
        self._types: dict[tuple[Any, ...], list[ArrayType]] = {}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], options: Any = None) -> list[Array]:
        """The named outputs. Raises what onnxruntime raises."""
        try:
            lane = self._idle.pop()
        except IndexError:
            lane = _Lane(self._session, self._memory)
        asked = (*((name, array.shape) for name, array in feeds.items()), *outputs)
        types = self._types.get(asked)
        lane.put(feeds)
        try:
            answers = lane.run(outputs, types or [], options)
        except RuntimeError:
            if not types:
                raise
            answers, types = lane.run(outputs, [], options), []
            self._types[asked] = types  # other numbers gave another shape
        if types is None:
            if len(self._types) >= LIMIT:
                self._types.clear()
            self._types[asked] = [(array.shape, array.dtype) for array in answers]
        self._idle.append(lane)  # not after an error, which leaves an unknown binding
        return answers


class _Lane:
    """The memory and the binding of one run at a time."""

    def __init__(self, session: Any, memory: Memory) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs, self._outputs = _Block(memory), _Block(memory)

    def put(self, feeds: Mapping[str, Array]) -> None:
        """Copy the inputs into this memory and bind them; onnxruntime copies them to a GPU when they are bound."""
        places = self._inputs.places([(array.shape, array.dtype) for array in feeds.values()])
        for (name, array), place in zip(feeds.items(), places, strict=True):
            np.copyto(place, array)
            self._binding.bind_input(name, "cpu", 0, place.dtype, place.shape, place.ctypes.data)

    def run(self, outputs: Sequence[str], types: Sequence[ArrayType], options: Any) -> list[Array]:
        """The outputs. Those of known ``types`` are written into this memory; for others onnxruntime finds memory."""
        self._binding.clear_binding_outputs()
        places = self._outputs.places(types)
        for name, place in zip(outputs, places, strict=False):
            self._binding.bind_output(name, "cpu", 0, place.dtype, place.shape, place.ctypes.data)
        for name in outputs[len(places) :]:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding, options)
        return [place.copy() for place in places] or [value.numpy() for value in self._binding.get_outputs()]


class _Block:
    """Memory that grows to the largest size that was ever needed."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._bytes = memory, np.empty(0, np.uint8)

    def places(self, types: Sequence[ArrayType]) -> list[Array]:
        """An array of each type, one behind the other; the arrays of the next call overwrite them."""
        starts, end = [], 0
        for shape, dtype in types:
            starts.append(end)
            end += -(-int(np.prod(shape, dtype=np.int64)) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        if end > len(self._bytes):
            self._bytes = np.empty(0, np.uint8)  # give the old memory back before asking for more
            self._bytes = self._memory(1 << (end - 1).bit_length())
        return [
            np.ndarray(shape, dtype, self._bytes.data, start)
            for start, (shape, dtype) in zip(starts, types, strict=True)
        ]
