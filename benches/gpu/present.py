"""Which NVIDIA GPUs can be used here.

    python -m benches.gpu.present

prints a line for each, "NAME, DRIVER", or ends with exit code 1 and one sentence: why there is none.
"""

from __future__ import annotations

import subprocess
import sys

import onnxruntime

from normfold.serving.runtime import placement
from normfold.serving.runtime.devices import CUDA_PROVIDER, installed_runtimes

#: Longest wait for nvidia-smi, in seconds.
SECONDS = 60.0


class NoGpu(Exception):
    """No GPU can be used; the message says why."""


def gpus() -> list[str]:
    """Return name and driver of each GPU that onnxruntime can use, as "NAME, DRIVER". Raises NoGpu."""
    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise NoGpu(f"no CUDA: the installed {' and '.join(installed_runtimes())} is built without it")
    if why := placement.why_not(CUDA_PROVIDER):
        if why.startswith("libcuda.so"):
            raise NoGpu(f"no GPU: NVIDIA's driver is not here ({why})")
        raise NoGpu(f"no CUDA: {why}")
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        what = error.strerror if isinstance(error, OSError) else f"no answer in {SECONDS:g} s"
        raise NoGpu(f"no GPU: nvidia-smi: {what}") from None
    found = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not found:
        said = " ".join((done.stdout + done.stderr).split())
        raise NoGpu(f"no GPU: nvidia-smi lists none{f': {said[:200]}' if said else ''}")
    return found


def main() -> int:
    """Print the GPUs, or the reason, and return the exit code."""
    try:
        print("\n".join(gpus()))
    except NoGpu as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
