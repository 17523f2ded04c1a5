"""Finds out which execution providers of this installation really load, and whether a server can start.

Each trial runs in a process of its own, so that an onnxruntime that is missing, is damaged or crashes is one line of
the report and not its end.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfold import telemetry
from normfold.cache_folder import cache_folder
from normfold.processor import affinity_cpus
from normfold.serving.errors import RuntimeMissing
from normfold.serving.process.cpus import available_cpus, cgroup_quota, default_workers
from normfold.serving.runtime.devices import (
    CPU_PROVIDER,
    PROVIDERS,
    Device,
    check_runtime,
    installed_runtimes,
    parse_device,
)
from normfold.shortage import NO_MEMORY

#: Distributions whose versions are reported besides those of onnxruntime.
DISTRIBUTIONS = ("normfold", "grpcio", "protobuf", "numpy", "uvloop", "torch")

#: Longest wait for one process, in seconds; CUDA's libraries are some 2 GB on a cold disk.
SECONDS = 120.0

#: A convolution of one number by one number, in opset 18: the operator that needs cuDNN.
_MODEL = (
    "CAk6aAoTCgF4CgF3EgF5GgAiBENvbnY6ABIGZG9jdG9yWhcKAXgSEgoQCAESDAoCCAEKAggBCgIIAVoXCgF3EhIKEAgB"
    "EgwKAggBCgIIAQoCCAFiFwoBeRISChAIARIMCgIIAQoCCAEKAggBQgQKABAS"
)
_LIST = "import json, onnxruntime as ort; print(json.dumps(ort.get_available_providers()))"
_TRY = """
import base64, contextlib, json, sys
import numpy
import onnxruntime as ort
name, index, model = sys.argv[1], sys.argv[2], base64.b64decode(sys.argv[3])
options = {}
if name != "CPUExecutionProvider":
    options = {"device_id": index}
    with contextlib.redirect_stdout(None):
        ort.preload_dlls()
session = ort.InferenceSession(model, providers=[(name, options)], enable_fallback=False)
three, two = (numpy.full((1, 1, 1), value, numpy.float32) for value in (3, 2))
(answer,) = session.run(None, {"x": three, "w": two})
print(json.dumps([session.get_providers()[0], answer.item()]))
"""
_SERVE = """
import normfold.serving.server, normfold.serving.catalog.load
import normfold.serving.service.service, normfold.serving.frontends.http2.frontend
print("true")
"""
_NOT_BUILT = "this onnxruntime is built without it"


@dataclass(frozen=True)
class Provider:
    """An execution provider. ``works``: a session on it was made and ran; else ``reason`` says why not."""

    name: str
    works: bool
    reason: str = ""


@dataclass(frozen=True)
class Cpus:
    """The CPUs of the machine, those that this process may use, and the workers and threads of a server on them."""

    machine: int
    affinity: int
    #: The quota of the cgroup, in CPUs; None: there is no quota.
    quota: float | None
    usable: int
    workers: int
    #: The most threads that one run may have.
    threads: int


@dataclass(frozen=True)
class Diagnosis:
    """The installed packages, and which of them work; with any of the ``problems`` a server cannot start."""

    python: str
    #: Distribution -> version; None: not installed.
    versions: dict[str, str | None]
    #: Distributions that provide the package `onnxruntime`, as "name version".
    runtimes: list[str]
    providers: list[Provider]
    cpus: Cpus
    cache: str | None
    #: Whether onnxruntime's telemetry is switched off.
    telemetry_off: bool
    problems: list[str]


class _Failed(Exception):
    """A trial failed; the message is the reason."""


def diagnose(device: str = "cpu") -> Diagnosis:
    """Try everything that a server on ``device`` needs. Raises StartError for an unknown device."""
    asked = parse_device(device)
    problems: list[str] = []
    providers: list[Provider] = []
    try:
        check_runtime()
        providers = _providers(asked.index)
        problems += _missing(asked, providers)
        _tried(_SERVE)
    except (RuntimeMissing, _Failed) as error:
        problems.append(str(error))
    cache = cache_folder()
    return Diagnosis(
        platform.python_version(),
        {name: _version(name) for name in DISTRIBUTIONS},
        installed_runtimes(),
        providers,
        _cpus(device),
        None if cache is None else str(cache),
        telemetry.is_off(),
        problems,
    )


def _missing(device: Device, providers: list[Provider]) -> list[str]:
    """A sentence for each provider that ``device`` needs and that does not work.

    "auto" needs only the CPU, to which it falls back.
    """
    name = PROVIDERS.get(device.kind, CPU_PROVIDER)
    cure = "; install the GPU build: pip uninstall -y onnxruntime && pip install 'normfold[gpu]', or use --device cpu"
    return [
        f"--device {device} needs {name}: {p.reason}{cure if device.gpu_demanded else ''}"
        for p in providers
        if p.name == name and not p.works
    ]


def _cpus(device: str) -> Cpus:
    usable, workers = available_cpus(), default_workers(device, "")
    return Cpus(os.cpu_count() or 1, affinity_cpus(), cgroup_quota(), usable, workers, max(1, usable // workers))


def _version(name: str) -> str | None:
    """The installed version, found without an import."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _providers(index: int) -> list[Provider]:
    """Each provider that a server may use, tried on the GPU with the number ``index``.

    Raises _Failed where onnxruntime cannot be imported.
    """
    built, _ = _tried(_LIST)
    return [
        _provider(name, index) if name in built else Provider(name, False, _NOT_BUILT) for name in PROVIDERS.values()
    ]


def _provider(name: str, index: int) -> Provider:
    try:
        (got, answer), log = _tried(_TRY, name, str(index), _MODEL)
    except _Failed as error:
        return Provider(name, False, str(error))
    if got != name:  # onnxruntime fell back; its log has the reason
        return Provider(name, False, reason(log) or f"onnxruntime fell back to {got} and does not say why")
    return Provider(name, answer == 6.0, "" if answer == 6.0 else f"3 times 2 is {answer:g} on it")


def _tried(script: str, *arguments: str) -> tuple[Any, str]:
    """The last line that ``script`` printed, read as JSON, and all that it wrote to stderr. Raises _Failed."""
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Failed(str(error)) from None
    if done.returncode < 0:
        raise _Failed(f"its process was ended by signal {-done.returncode} ({signal.strsignal(-done.returncode)})")
    if done.returncode:
        raise _Failed(reason(done.stderr) or f"its process ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def reason(log: str) -> str:
    """The cause of a failure in ``log``, the stderr of a process: a missing library, too little memory, the last line.

    >>> reason("2026 [E] Failed to load library p.so with error: libcudart.so.13: cannot open shared object file: No")
    'libcudart.so.13 is missing'
    """
    if missing := re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", log):
        return f"{missing[1]} is missing"
    if re.search(r"^MemoryError\b", log, re.MULTILINE):
        return NO_MEMORY
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return re.sub(r"\x1b\[[0-9;]*m", "", lines[-1]) if lines else ""
