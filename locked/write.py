"""Write ``locked/serving.txt``: every package that a server needs, with its version and the SHA-256 of its wheels.

    python locked/write.py PIP

``PIP`` is a pip. It is asked for each kind of machine and version of Python which wheels it would install on Linux,
with the versions of constraints.txt; nothing is installed. Install with: pip install --require-hashes --requirement
locked/serving.txt, and then pip install --no-deps normfold. torch is not among them: an export needs another list.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17")
#: The longest time that pip may take for one of them, in seconds.
MOST_SECONDS = 600
EXTRAS = ("cpu", "signing")
HEAD = "# Written by make lock: what a server installs, with the SHA-256 of each wheel for Linux"


def main() -> int:
    """Ask pip for each version of Python, and write the file; return 1, and leave the file, where pip finds nothing."""
    wanted = requirements()
    found: dict[str, tuple[str, set[str]]] = {}
    targets = [(machine, python) for machine in MACHINES for python in PYTHONS]
    for number, (machine, python) in enumerate(targets, 1):
        print(f"{number} of {len(targets)}: asking pip what it would install on {machine}, Python {python}", flush=True)
        try:
            packages = chosen(sys.argv[1], machine, python, wanted)
        except subprocess.TimeoutExpired:
            print(f"locked/serving.txt stays as it was: pip took more than {MOST_SECONDS} s")
            return 1
        except subprocess.CalledProcessError as error:
            said = [line for line in error.stderr.splitlines() if not line.startswith("WARNING")]
            print(f"locked/serving.txt stays as it was: {said[-1] if said else 'pip failed without a word'}")
            return 1
        for name, version, digest in packages:
            found.setdefault(name, (version, set()))[1].add(digest)
    (ROOT / "locked" / "serving.txt").write_text(text(found), encoding="utf-8")
    print(f"locked/serving.txt has {len(found)} packages")
    return 0


def requirements() -> list[str]:
    """Return what pyproject.toml asks for, for a server."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for extra in EXTRAS for one in project["optional-dependencies"][extra]]
    return [*project["dependencies"], *extras]


def chosen(pip: str, machine: str, python: str, wanted: list[str]) -> list[tuple[str, str, str]]:
    """Return the packages that ``pip`` would install: name, version, SHA-256."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [pip, "install", "--dry-run", "--quiet", "--ignore-installed", "--only-binary", ":all:"]
        command += ["--timeout", "15", "--retries", "1", "--disable-pip-version-check"]
        command += [part for platform in PLATFORMS for part in ("--platform", f"{platform}_{machine}")]
        command += ["--python-version", python, "--target", folder, "--report", str(report)]
        command += ["--constraint", str(ROOT / "constraints.txt"), *wanted]
        subprocess.run(command, check=True, timeout=MOST_SECONDS, capture_output=True, text=True)
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [
        (
            one["metadata"]["name"].lower().replace("_", "-"),
            one["metadata"]["version"],
            one["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for one in installed
    ]


def text(found: dict[str, tuple[str, set[str]]]) -> str:
    """Return the file."""
    lines = [f"{HEAD} ({', '.join(MACHINES)}) and Python {', '.join(PYTHONS)}"]
    for name, (version, digests) in sorted(found.items()):
        lines.append(" \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{one}" for one in sorted(digests))]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
