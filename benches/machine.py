"""The machine that figures were measured on, described without its host name."""

from __future__ import annotations

import platform
from pathlib import Path

from normfold.processor import processor_name
from normfold.serving.process.cpus import available_cpus

_CPUINFO = Path("/proc/cpuinfo")
#: The sets that onnxruntime and OpenVINO have kernels for, by Linux's names, from the oldest to the newest.
SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "amx_int8": "AMX",
    "asimd": "NEON",
    "asimddp": "dot product",
    "sve": "SVE",
}


def machine() -> str:
    """Return one sentence: the number of CPUs, the processor's name and vector instructions, the version of Python."""
    sets = ", ".join(instruction_sets()) or "vector instructions unknown"
    return f"Measured on {available_cpus()} CPUs ({processor_name()}; {sets}), Python {platform.python_version()}."


def instruction_sets(cpuinfo: Path = _CPUINFO) -> list[str]:
    """Return the vector instructions that the processor has, as far as run times depend on them."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for flag, name in SETS.items() if flag in flags]
