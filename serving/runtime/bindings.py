"""Inputs and outputs that stay at their places in memory from one run to the next.

`Bound` spares short runs on the CPU the making of arrays. `Resident` is for CUDA graphs: a graph replays the kernels of
an earlier run at the addresses of that run, and onnxruntime keeps it for the thread that captured it. So one thread
makes all runs, on one set of bound tensors: inputs are copied into them, the graph runs, outputs are copied out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from normfold.serving.errors import InvalidRequest

Array = NDArray[Any]
#: (name, dtype, shape) of an input or output.
Fixed = tuple[str, "np.dtype[Any]", tuple[int, ...]]


class Bound:
    """Runs of one session that read and write the same memory every time; for one thread at a time."""

    def __init__(self, session: ort.InferenceSession, feeds: Mapping[str, Array], answers: Mapping[str, Array]) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs = [np.zeros(array.shape, array.dtype) for array in feeds.values()]
        #: The memory of each input, into which its bytes are written before a run.
        self.views = [memoryview(array.reshape(-1).view(np.uint8).data) for array in self._inputs]
        #: The outputs of the last run.
        self.outputs = [np.zeros(array.shape, array.dtype) for array in answers.values()]
        for name, array in zip(feeds, self._inputs, strict=True):
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in zip(answers, self.outputs, strict=True):
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        """Run once. Raises what onnxruntime raises, for example when an output has another shape this time."""
        self._session.run_with_iobinding(self._binding)


class Resident:
    """A session whose tensors have fixed places on a device; ``run`` may be called from several threads at once."""

    def __init__(
        self, session: Any, inputs: Sequence[Fixed], outputs: Sequence[Fixed], device: str = "cuda", index: int = 0
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs, self._outputs = self._values(inputs, device, index), self._values(outputs, device, index)
        self._fixed = {name: (dtype, shape) for name, dtype, shape in inputs}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._thread = ThreadPoolExecutor(1, "normfold-graph")

    @staticmethod
    def _values(tensors: Sequence[Fixed], device: str, index: int) -> dict[str, ort.OrtValue]:
        make = ort.OrtValue.ortvalue_from_shape_and_type
        return {name: make(list(shape), dtype.type, device, index) for name, dtype, shape in tensors}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """The outputs named in ``outputs``. Raises InvalidRequest for another shape, and what onnxruntime raises."""
        ready = {}
        for name, (dtype, shape) in self._fixed.items():
            if name not in feeds or feeds[name].shape != shape:
                got = list(feeds[name].shape) if name in feeds else "nothing"
                raise InvalidRequest(f"input {name!r} must have the shape {list(shape)}, got {got}")
            ready[name] = np.ascontiguousarray(feeds[name], dtype).reshape(shape)
        return self._thread.submit(self._run, ready, outputs).result()

    def _run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        for name, array in feeds.items():
            self._inputs[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding)
        return [np.array(self._outputs[name].numpy()) for name in outputs]
