"""On which device the nodes of a session really run, and why CUDA or TensorRT did not load.

onnxruntime silently moves nodes that a provider cannot run to the CPU. If a convolution is among them, every run copies
activations from the GPU to the CPU and back, which is slower than either device alone.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from normfold.serving.errors import DeviceUnavailable
from normfold.serving.runtime.devices import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    WORDS,
    Device,
    installed_runtimes,
)

log = logging.getLogger(__name__)

#: Longest wait, in seconds, for the process that tries to load CUDA; its libraries are some 2 GB on a cold disk.
LOAD_SECONDS = 120.0
_REFUSED = 3
_LOAD = f"""
import contextlib, ctypes, sys
import onnxruntime
with contextlib.redirect_stdout(None):
    onnxruntime.preload_dlls()
try:
    ctypes.CDLL(sys.argv[1] + "/libonnxruntime_providers_shared.so", ctypes.RTLD_GLOBAL)
    ctypes.CDLL(sys.argv[1] + "/libonnxruntime_providers_" + sys.argv[2] + ".so")
except OSError as error:
    sys.stderr.write(str(error))
    sys.exit({_REFUSED})
"""

#: Makes onnxruntime record which provider each node was assigned to.
RECORD = ("session.record_ep_graph_assignment_info", "1")

#: Operators that onnxruntime puts on the CPU on purpose when they compute a shape, which is a few integers.
SHAPE_OPERATORS = {
    *("Shape", "Size", "Constant", "ConstantOfShape", "Range", "Gather", "Concat", "Slice", "Squeeze", "Unsqueeze"),
    *("Reshape", "Cast", "Identity", "Expand", "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max"),
    *("Floor", "Ceil", "ReduceProd", "Equal", "Less", "Greater", "Where", "Not", "And", "Or", "NonZero"),
}


_LIBRARIES = {CUDA_PROVIDER: "cuda", TENSORRT_PROVIDER: "tensorrt"}
_HINTS = {
    CUDA_PROVIDER: "pip install 'normfold[gpu]' and see what nvidia-smi says, or use --device cpu",
    TENSORRT_PROVIDER: "install TensorRT and name the folder of libnvinfer.so in LD_LIBRARY_PATH, or use --device cuda",
}


def nodes_of(session: Any, provider: str) -> list[tuple[str, str]] | None:
    """(operator, name) of every node that ``provider`` runs; None if this onnxruntime does not report it."""
    report = getattr(session, "get_provider_graph_assignment_info", None)
    if report is None:
        return None
    return [(node.op_type, node.name) for part in report() if part.ep_name == provider for node in part.get_nodes()]


def check(session: Any, asked: Sequence[tuple[str, Mapping[str, str]]], demanded: bool) -> str:
    """The nodes of a session on a GPU that stayed on the CPU, in words.

    Logs them too, and the nodes that stayed on CUDA where TensorRT was ``asked`` for. Raises DeviceUnavailable where
    the GPU was ``demanded`` and a node on the CPU does more than compute shapes, or a provider runs with other options
    than those in ``asked``.
    """
    if demanded:
        for provider, options in asked:
            _check_options(session, provider, options)
    found = nodes_of(session, CPU_PROVIDER)
    if found is None:
        log.warning("this onnxruntime %s does not report which nodes stayed on the CPU", ort.__version__)
    if asked[0][0] == TENSORRT_PROVIDER and (beside := nodes_of(session, CUDA_PROVIDER)):
        log.warning("%d nodes run on CUDA and not on TensorRT: %s", len(beside), _listed(beside))
    if not found:
        return "" if found is not None else f"not reported by onnxruntime {ort.__version__}"
    nodes = _listed(found)
    if demanded and (heavy := [node for node in found if node[0] not in SHAPE_OPERATORS]):
        raise DeviceUnavailable(
            f"{WORDS[asked[0][0]]} was asked for, but onnxruntime left {_listed(heavy)} on the CPU: CUDA has no kernel "
            "for that; use --device auto to run the rest on the GPU, or --device cpu"
        )
    log.warning("%d nodes stayed on the CPU: %s", len(found), nodes)
    return nodes


def _check_options(session: Any, provider: str, asked: Mapping[str, str]) -> None:
    """Raise DeviceUnavailable if ``provider`` runs with other options than ``asked``."""
    got = {key: _SWITCH.get(value, value) for key, value in session.get_provider_options().get(provider, {}).items()}
    other = [f"{key}={got[key]} instead of {value}" for key, value in asked.items() if got.get(key, value) != value]
    if other:
        raise DeviceUnavailable(
            f"the {WORDS[provider]} provider did not take its options: it runs with {', '.join(other)}"
        )


#: onnxruntime reports a switch as a word or as a number.
_SWITCH = {"False": "0", "True": "1", "false": "0", "true": "1"}


def prepare(device: Device, available: Sequence[str], tensorrt: bool = False) -> list[str]:
    """The providers of ``available`` that load; CUDA's libraries are loaded if ``device`` may use them.

    ``tensorrt``: on "auto", use TensorRT if it loads.

    Raises DeviceUnavailable, with the library that is missing, if a provider is demanded and does not load.
    """
    left = list(available)
    if device.kind == "cpu":
        return left
    wanted = [CUDA_PROVIDER] + [TENSORRT_PROVIDER] * (device.kind == "tensorrt" or tensorrt)
    for provider in wanted:
        if provider in left:
            if not (why := why_not(provider)):
                continue
            why = f"{WORDS[provider]} does not load: {why}"
            if device.gpu_demanded:
                raise DeviceUnavailable(f"device {device} was asked for, but {why}; {_HINTS[provider]}")
        elif device.gpu_demanded:
            continue  # ``devices.providers`` says what to install
        else:
            why = f"the installed {' and '.join(installed_runtimes())} is built without {WORDS[provider]}"
        if provider == CUDA_PROVIDER:
            warn_once(f"models run on the CPU: {why}")
            return [name for name in left if name not in (CUDA_PROVIDER, TENSORRT_PROVIDER)]
        warn_once(f"models run on CUDA: {why}")
        left = [name for name in left if name != TENSORRT_PROVIDER]
    if CUDA_PROVIDER in left:
        with contextlib.redirect_stdout(None):  # it prints the libraries that it does not find
            ort.preload_dlls()
    return left


@functools.cache
def warn_once(text: str) -> None:
    """Log ``text`` as a warning, once in this process however many models there are."""
    log.warning("%s", text)


@functools.cache
def why_not(provider: str) -> str:
    """The reason why a provider's library does not load, such as a shared library that is missing; "" if it loads.

    It is tried in another process: a provider connects to onnxruntime when it is loaded, so in this process only
    onnxruntime may load it.
    """
    asked = [sys.executable, "-c", _LOAD, str(Path(ort.__file__).parent / "capi"), _LIBRARIES[provider]]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=LOAD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""  # unknown; making the session will show it
    return done.stderr.strip() if done.returncode == _REFUSED else ""


def is_device_failure(error: Exception) -> bool:
    """Whether ``error``, raised when a session was made, comes from the GPU and not from the model."""
    return any(word in str(error) for word in ("CUDA failure", "CUDNN failure", "CUBLAS failure", "cudaError"))


def _listed(nodes: list[tuple[str, str]]) -> str:
    """The first eight nodes in words: ``Conv 'a', Relu, … (12 in all)``.

    >>> _listed([("Conv", "a"), ("Relu", "")])
    "Conv 'a', Relu"
    """
    text = ", ".join(f"{operator} {name!r}" if name else operator for operator, name in nodes[:8])
    return text if len(nodes) <= 8 else f"{text}, … ({len(nodes)} in all)"
