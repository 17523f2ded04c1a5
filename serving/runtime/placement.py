"""Where the nodes of a session really run, and why CUDA or TensorRT did not load.

onnxruntime moves what a provider cannot run to the CPU without a word. A network with a convolution left there copies
its activations across and back in every run, which is slower than either device alone.
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

#: Longest wait for the process that tries to load CUDA; its libraries are some 2 GB on a cold disk.
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

#: Asks onnxruntime to keep which provider each node went to.
RECORD = ("session.record_ep_graph_assignment_info", "1")

#: Operators that onnxruntime puts on the CPU on purpose where they compute a shape: a few integers.
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
    """(operator, name) of every node that ``provider`` runs; None where this onnxruntime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return None
    return [(node.op_type, node.name) for part in tell() if part.ep_name == provider for node in part.get_nodes()]


def check(session: Any, asked: Sequence[tuple[str, Mapping[str, str]]], demanded: bool) -> str:
    """What of a session on a GPU stayed on the CPU, in words; named in the log, too.

    So is what stayed on CUDA where TensorRT was ``asked`` for.

    Raises DeviceUnavailable where the GPU was ``demanded`` and a node on the CPU is more than the arithmetic of shapes,
    or a provider runs with other options than asked for.
    """
    if demanded:
        for provider, options in asked:
            _check_options(session, provider, options)
    found = nodes_of(session, CPU_PROVIDER)
    if found is None:
        log.warning("this onnxruntime %s does not tell which nodes stayed on the CPU", ort.__version__)
    if asked[0][0] == TENSORRT_PROVIDER and (beside := nodes_of(session, CUDA_PROVIDER)):
        log.warning("%d nodes run on CUDA and not on TensorRT: %s", len(beside), _listed(beside))
    if not found:
        return "" if found is not None else f"not told by onnxruntime {ort.__version__}"
    told = _listed(found)
    if demanded and (heavy := [node for node in found if node[0] not in SHAPE_OPERATORS]):
        raise DeviceUnavailable(
            f"{WORDS[asked[0][0]]} was asked for, but onnxruntime left {_listed(heavy)} on the CPU: CUDA has no kernel "
            "for that; use --device auto to run the rest on the GPU, or --device cpu"
        )
    log.warning("%d nodes stayed on the CPU: %s", len(found), told)
    return told


def _check_options(session: Any, provider: str, asked: Mapping[str, str]) -> None:
    """Raise DeviceUnavailable where ``provider`` runs with other options than ``asked``."""
    got = {key: _SWITCH.get(value, value) for key, value in session.get_provider_options().get(provider, {}).items()}
    other = [f"{key}={got[key]} instead of {value}" for key, value in asked.items() if got.get(key, value) != value]
    if other:
        raise DeviceUnavailable(
            f"the {WORDS[provider]} provider did not take its options: it runs with {', '.join(other)}"
        )


#: onnxruntime tells a switch in words or as a number.
_SWITCH = {"False": "0", "True": "1", "false": "0", "true": "1"}


def prepare(device: Device, available: Sequence[str], tensorrt: bool = False) -> list[str]:
    """The providers of ``available`` that load, with CUDA's libraries in memory if ``device`` may use them.

    ``tensorrt``: on "auto", TensorRT is to be used if it loads.

    Raises DeviceUnavailable, with the library that is missing, where one is demanded and does not load.
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
        with contextlib.redirect_stdout(None):  # it prints what it does not find
            ort.preload_dlls()
    return left


@functools.cache
def warn_once(text: str) -> None:
    """Log ``text`` as a warning, once in this process however many models there are."""
    log.warning("%s", text)


@functools.cache
def why_not(provider: str) -> str:
    """What the loader says of a provider's library, such as the shared library that it misses; "" if it loads.

    Asked in a process of its own: the provider takes its connection to onnxruntime when it is loaded, so it must not be
    in this process before onnxruntime loads it.
    """
    asked = [sys.executable, "-c", _LOAD, str(Path(ort.__file__).parent / "capi"), _LIBRARIES[provider]]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=LOAD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""  # not known; the session will tell
    return done.stderr.strip() if done.returncode == _REFUSED else ""


def is_device_failure(error: Exception) -> bool:
    """Whether ``error``, raised when a session was made, is of the GPU and not of the model."""
    return any(word in str(error) for word in ("CUDA failure", "CUDNN failure", "CUBLAS failure", "cudaError"))


def _listed(nodes: list[tuple[str, str]]) -> str:
    """The first nodes in words: ``Conv 'a', Relu, … (12 in all)``.

    >>> _listed([("Conv", "a"), ("Relu", "")])
    "Conv 'a', Relu"
    """
    told = ", ".join(f"{operator} {name!r}" if name else operator for operator, name in nodes[:8])
    return told if len(nodes) <= 8 else f"{told}, … ({len(nodes)} in all)"
