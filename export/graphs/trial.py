"""A first run of a graph in a process of its own, because onnxruntime ends the process for some graphs.

In float16 it puts Casts around the operators that it has in float32 only, and its optimiser crashes on some of what it
makes of an RNN, for example. Then the export must end in a sentence, and a notebook must not lose its session.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.errors import ExportError
from normfold.export.graphs.runtime import CPU

__all__ = ["require_no_crash"]

#: Loads the graph and runs it once; an error that onnxruntime raises is left to the process that asks.
_PROGRAM = """
import contextlib, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
with contextlib.suppress(Exception):
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=sys.argv[3:])
    with numpy.load(sys.argv[2]) as inputs:
        session.run(None, dict(inputs))
"""


def require_no_crash(
    content: bytes, inputs: Mapping[str, NDArray[Any]], what: str, providers: Sequence[str] = (CPU,)
) -> None:
    """Raise ExportError where onnxruntime ends its process while it loads ``content`` or runs it on ``inputs``.

    what: the graph in words, for the sentence.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, arrays = Path(folder) / "model.onnx", Path(folder) / "inputs.npz"
        file.write_bytes(content)
        named: dict[str, Any] = dict(inputs)
        np.savez(arrays, **named)
        command = [sys.executable, "-c", _PROGRAM, str(file), str(arrays), *providers]
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
    if ended < 0:
        name = signal.Signals(-ended).name
        raise ExportError(
            f"onnxruntime crashes on {what} ({name}), so nothing was published. Its float32 graph is not concerned: "
            "leave out --dtype and --quantize"
        )
