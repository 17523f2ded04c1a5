"""Where the nodes of a session really run, and why CUDA did not load.

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

from normfold.serving.devices import CPU_PROVIDER, CUDA_PROVIDER, Device
from normfold.serving.errors import DeviceUnavailable

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
    ctypes.CDLL(sys.argv[1] + "/libonnxruntime_providers_cuda.so")
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


def nodes_on_cpu(session: Any) -> list[tuple[str, str]] | None:
    """(operator, name) of every node on the CPU; None where this onnxruntime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return None
    return [(node.op_type, node.name) for part in tell() if part.ep_name == CPU_PROVIDER for node in part.get_nodes()]


def check(session: Any, options: Mapping[str, str], demanded: bool) -> None:
    """Name the nodes of a CUDA ``session`` that stayed on the CPU, in the log.

    Raises DeviceUnavailable where CUDA was ``demanded`` and one of them is more than the arithmetic of shapes, or the
    provider runs with other ``options``.
    """
    if demanded:
        _check_options(options, session)
    found = nodes_on_cpu(session)
    if found is None:
        log.warning("this onnxruntime %s does not tell which nodes stayed on the CPU", ort.__version__)
    if not found:
        return
    told = _listed(found)
    if demanded and (heavy := [node for node in found if node[0] not in SHAPE_OPERATORS]):
        raise DeviceUnavailable(
            f"CUDA was asked for, but onnxruntime left {_listed(heavy)} on the CPU: CUDA has no kernel for "
            "that; use --device auto to run the rest on the GPU, or --device cpu"
        )
    log.warning("%d nodes stayed on the CPU: %s", len(found), told)


def _check_options(asked: Mapping[str, str], session: Any) -> None:
    """Raise DeviceUnavailable where the CUDA provider of ``session`` runs with other options than ``asked``."""
    got = session.get_provider_options().get(CUDA_PROVIDER, {})
    other = [f"{key}={got[key]} instead of {value}" for key, value in asked.items() if got.get(key, value) != value]
    if other:
        raise DeviceUnavailable(f"the CUDA provider did not take its options: it runs with {', '.join(other)}")


def prepare(device: Device, available: Sequence[str]) -> list[str]:
    """The providers of ``available`` that load, with CUDA's libraries in memory if ``device`` may use them.

    Raises DeviceUnavailable, with the library that is missing, where CUDA is demanded and does not load.
    """
    if device.kind == "cpu" or CUDA_PROVIDER not in available:
        return list(available)
    if why := why_not_cuda():
        if device.kind == "cuda":
            raise DeviceUnavailable(
                f"device {device} was asked for, but CUDA does not load: {why}; "
                "pip install 'normfold[gpu]' and see what nvidia-smi says, or use --device cpu"
            )
        _tell_once(why)
        return [name for name in available if name != CUDA_PROVIDER]
    with contextlib.redirect_stdout(None):  # it prints what it does not find
        ort.preload_dlls()
    return list(available)


@functools.cache
def _tell_once(why: str) -> None:
    log.warning("models run on the CPU: CUDA does not load: %s", why)


@functools.cache
def why_not_cuda() -> str:
    """What the loader says of CUDA's provider library, such as the shared library that it misses; "" if it loads.

    Asked in a process of its own: the provider takes its connection to onnxruntime when it is loaded, so it must not be
    in this process before onnxruntime loads it.
    """
    asked = [sys.executable, "-c", _LOAD, str(Path(ort.__file__).parent / "capi")]
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
