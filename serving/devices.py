"""Which onnxruntime is installed and which execution provider a session gets.

onnxruntime falls back from CUDA to the CPU in silence: it lists providers that were compiled in, not ones that work,
and a session asked for CUDA may come back without it. So a provider is asked for alone where it is demanded, and what
the session really got is checked after its creation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from normfold.serving import cuda_options
from normfold.serving.errors import DeviceUnavailable, RuntimeMissing, StartError

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

#: Distributions that write the package `onnxruntime`; two of them overwrite each other's files.
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")


@dataclass(frozen=True)
class Device:
    """Where models run: ``kind`` is "cpu", "cuda" or "auto"; ``index`` is the CUDA device's number."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.kind == "cuda" else self.kind


def parse_device(text: str) -> Device:
    """The device that ``text`` names: "cpu", "cuda", "cuda:1" or "auto". Raises StartError."""
    if text in ("cpu", "cuda", "auto"):
        return Device(text)
    if match := re.fullmatch(r"cuda:([0-9]{1,3})", text):
        return Device("cuda", int(match[1]))
    raise StartError(f"device {text!r} is not known: use cpu, cuda, cuda:N (for example cuda:1) or auto")


def installed_runtimes() -> list[str]:
    """The installed distributions that provide the package `onnxruntime`, as "name version"."""
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {distribution(name).version}")
        except PackageNotFoundError:
            continue
    return found


def check_runtime() -> None:
    """Raise RuntimeMissing, with the command that mends it, unless exactly one onnxruntime is installed."""
    found = installed_runtimes()
    if not found:
        raise RuntimeMissing(
            "no onnxruntime is installed; for the CPU: pip install 'normfold[cpu]', "
            "for an NVIDIA GPU: pip install 'normfold[gpu]'"
        )
    if len(found) > 1:
        names = [name.split()[0] for name in found]
        raise RuntimeMissing(
            f"{' and '.join(found)} are both installed and overwrite each other's files; keep one: "
            f"pip uninstall -y {' '.join(names)} && pip install 'normfold[cpu]' (or 'normfold[gpu]')"
        )


def providers(
    device: Device, available: Sequence[str], overrides: Mapping[str, str] | None = None
) -> list[tuple[str, dict[str, str]]]:
    """The execution providers to ask for, in order, with their options.

    ``available`` is what was compiled in; ``overrides`` replace our CUDA options.

    Raises DeviceUnavailable where CUDA is demanded and this onnxruntime was built without it.
    """
    cuda = (CUDA_PROVIDER, {"device_id": str(device.index), **cuda_options.DEFAULTS, **(overrides or {})})
    if device.kind == "cpu":
        return [(CPU_PROVIDER, {})]
    if device.kind == "cuda":
        if CUDA_PROVIDER not in available:
            raise DeviceUnavailable(
                f"device {device} was asked for, but the installed {' and '.join(installed_runtimes())} is built "
                "without CUDA; install the GPU build: pip uninstall -y onnxruntime && pip install 'normfold[gpu]', "
                "or use --device cpu"
            )
        return [cuda]
    return [cuda, (CPU_PROVIDER, {})] if CUDA_PROVIDER in available else [(CPU_PROVIDER, {})]


def check_provider(device: Device, session: Any) -> str:
    """The device that the created ``session`` really runs on, "cpu" or "cuda:N".

    Raises DeviceUnavailable where CUDA was demanded and the session came back without it.
    """
    got = session.get_providers()
    if got and got[0] == CUDA_PROVIDER:
        index = session.get_provider_options().get(CUDA_PROVIDER, {}).get("device_id", str(device.index))
        return f"cuda:{index}"
    if device.kind == "cuda":
        raise DeviceUnavailable(
            f"device {device} was asked for, but onnxruntime fell back to {', '.join(got) or 'nothing'}: "
            "cuDNN or the GPU itself is missing; its log above has the reason. See what nvidia-smi says, "
            "pip install 'normfold[gpu]', or use --device cpu"
        )
    return "cpu"
