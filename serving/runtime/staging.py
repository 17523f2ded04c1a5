"""Runs on a GPU for inputs of any shape: their numbers pass through host memory that stays where it is.

    request ──► page-locked memory ──► GPU ──► page-locked memory ──► answer

From other memory CUDA copies twice, and waits. `bindings.Resident` is for models of fixed shapes that replay a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Memory = Callable[[int], Array]
#: Shape and dtype of an array.
Form = tuple[tuple[int, ...], "np.dtype[Any]"]

#: Every array begins at a multiple of this.
ALIGNMENT = 64

#: Shapes whose answers' shapes are remembered; one more, and all are learned again.
LIMIT = 1024


class Staged:
    """A session and as many places for the numbers of its runs as were ever on their way at once.

    ``memory`` makes an array of so many bytes. ``run`` may be called from several threads.
    """

    def __init__(self, session: Any, memory: Memory) -> None:
        self._session, self._memory = session, memory
        self._idle: list[_Lane] = []
        #: Shapes of inputs and names of outputs -> forms of the outputs; empty where they depend on the numbers.
        self._known: dict[tuple[Any, ...], list[Form]] = {}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], options: Any = None) -> list[Array]:
        """The named outputs. Raises what onnxruntime raises."""
        try:
            lane = self._idle.pop()
        except IndexError:
            lane = _Lane(self._session, self._memory)
        asked = (*((name, array.shape) for name, array in feeds.items()), *outputs)
        known = self._known.get(asked)
        lane.put(feeds)
        try:
            answers = lane.run(outputs, known or [], options)
        except RuntimeError:
            if not known:
                raise
            answers, known = lane.run(outputs, [], options), []
            self._known[asked] = known  # other numbers, another shape
        if known is None:
            if len(self._known) >= LIMIT:
                self._known.clear()
            self._known[asked] = [(array.shape, array.dtype) for array in answers]
        self._idle.append(lane)  # not after an error: what is bound is then not known
        return answers


class _Lane:
    """The memory and the binding of one run at a time."""

    def __init__(self, session: Any, memory: Memory) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs, self._outputs = _Block(memory), _Block(memory)

    def put(self, feeds: Mapping[str, Array]) -> None:
        """Copy the inputs, and bind them: on a GPU that is when they are copied to it."""
        places = self._inputs.places([(array.shape, array.dtype) for array in feeds.values()])
        for (name, array), place in zip(feeds.items(), places, strict=True):
            np.copyto(place, array)
            self._binding.bind_input(name, "cpu", 0, place.dtype, place.shape, place.ctypes.data)

    def run(self, outputs: Sequence[str], forms: Sequence[Form], options: Any) -> list[Array]:
        """The outputs, of these ``forms`` where they are known; otherwise onnxruntime finds the memory for them."""
        self._binding.clear_binding_outputs()
        places = self._outputs.places(forms)
        for name, place in zip(outputs, places, strict=False):
            self._binding.bind_output(name, "cpu", 0, place.dtype, place.shape, place.ctypes.data)
        for name in outputs[len(places) :]:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding, options)
        return [place.copy() for place in places] or [value.numpy() for value in self._binding.get_outputs()]


class _Block:
    """Memory that grows to the largest need there was."""

    def __init__(self, memory: Memory) -> None:
        self._memory, self._bytes = memory, np.empty(0, np.uint8)

    def places(self, forms: Sequence[Form]) -> list[Array]:
        """An array of each form, one behind the other; they are overwritten by the next call."""
        starts, end = [], 0
        for shape, dtype in forms:
            starts.append(end)
            end += -(-int(np.prod(shape, dtype=np.int64)) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        if end > len(self._bytes):
            self._bytes = np.empty(0, np.uint8)  # the old is given back before the new is asked for
            self._bytes = self._memory(1 << (end - 1).bit_length())
        return [
            np.ndarray(shape, dtype, self._bytes.data, start)
            for start, (shape, dtype) in zip(starts, forms, strict=True)
        ]
