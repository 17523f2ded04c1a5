"""Which onnxruntime is installed, and which execution provider a session gets.

onnxruntime silently falls back from TensorRT to CUDA and from CUDA to the CPU: it lists providers that it was built
with, not providers that work, and a session that was asked for CUDA may run without it. So where a GPU is demanded, the
CPU is not offered, and the provider of the session is checked after the session was made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from normfold.serving.errors import DeviceUnavailable, RuntimeMissing, StartError
from normfold.serving.runtime import cuda_options, tensorrt_options

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

#: The provider that each kind of device asks for first, and the name of each provider in messages.
PROVIDERS = {"cpu": CPU_PROVIDER, "cuda": CUDA_PROVIDER, "tensorrt": TENSORRT_PROVIDER}
WORDS = {CPU_PROVIDER: "the CPU", CUDA_PROVIDER: "CUDA", TENSORRT_PROVIDER: "TensorRT"}

#: Distributions that install the package `onnxruntime`; two of them overwrite each other's files.
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")


@dataclass(frozen=True)
class Device:
    """The device that models run on: ``kind`` is "cpu", "cuda", "tensorrt" or "auto"; ``index`` is the GPU's number."""

    kind: str
    index: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.gpu_demanded else self.kind

    @property
    def gpu_demanded(self) -> bool:
        """Whether running on the CPU instead is an error."""
        return self.kind in ("cuda", "tensorrt")


def parse_device(text: str) -> Device:
    """The device that ``text`` names: "cpu", "cuda", "cuda:1", "tensorrt", ... or "auto". Raises StartError."""
    if text in ("cpu", "cuda", "tensorrt", "auto"):
        return Device(text)
    if match := re.fullmatch(r"(cuda|tensorrt):([0-9]{1,3})", text):
        return Device(match[1], int(match[2]))
    raise StartError(
        f"device {text!r} is not known: use cpu, cuda, cuda:N (for example cuda:1), tensorrt, tensorrt:N or auto"
    )


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
    """Raise RuntimeMissing, with the command that repairs it, unless exactly one onnxruntime is installed."""
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
    device: Device,
    available: Sequence[str],
    cuda: Mapping[str, str] | None = None,
    tensorrt: Mapping[str, str] | None = None,
) -> list[tuple[str, dict[str, str]]]:
    """The execution providers to ask for, in order, with their options.

    ``available`` are the providers that are built in and load; ``cuda`` and ``tensorrt`` replace our options. On
    "auto", TensorRT is asked for only if ``tensorrt`` is not None.

    Raises DeviceUnavailable where a provider is demanded and this onnxruntime was built without it.
    """
    number = {"device_id": str(device.index)}
    wanted = {CUDA_PROVIDER: {**number, **cuda_options.DEFAULTS, **(cuda or {})}}
    if device.kind == "cpu":
        return [(CPU_PROVIDER, {})]
    if device.kind == "tensorrt" or (device.kind == "auto" and tensorrt is not None):
        wanted = {TENSORRT_PROVIDER: {**number, **tensorrt_options.DEFAULTS, **(tensorrt or {})}, **wanted}
    if device.kind == "auto":
        return [(name, options) for name, options in wanted.items() if name in available] + [(CPU_PROVIDER, {})]
    for name in wanted:
        if name not in available:
            raise DeviceUnavailable(
                f"device {device} was asked for, but the installed {' and '.join(installed_runtimes())} is built "
                f"without {WORDS[name]}; install the GPU build: pip uninstall -y onnxruntime && "
                "pip install 'normfold[gpu]', or use --device cpu"
            )
    return list(wanted.items())


def check_provider(device: Device, session: Any) -> str:
    """The device that the created ``session`` really runs on: "cpu", "cuda:N" or "tensorrt:N".

    Raises DeviceUnavailable where another was demanded.
    """
    got = session.get_providers()
    first = got[0] if got else ""
    if device.gpu_demanded and first != PROVIDERS[device.kind]:
        cause = "TensorRT's libraries are" if device.kind == "tensorrt" else "cuDNN or the GPU itself is"
        raise DeviceUnavailable(
            f"device {device} was asked for, but onnxruntime fell back to {', '.join(got) or 'nothing'}: "
            f"{cause} missing; its log above has the reason. See what normfold doctor and nvidia-smi say, "
            "pip install 'normfold[gpu]', or use --device cpu"
        )
    for kind in ("tensorrt", "cuda"):
        if first == PROVIDERS[kind]:
            index = session.get_provider_options().get(first, {}).get("device_id", str(device.index))
            return f"{kind}:{index}"
    return "cpu"
