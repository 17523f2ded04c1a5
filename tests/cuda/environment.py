"""An environment with the carried wheels, made of what a machine with a GPU has already, and without a package index.

    python3 tests/cuda/environment.py arrived [FOLDER]    which loads are here; what this machine lacks
    python3 tests/cuda/environment.py build [FOLDER]      make the environment; the last line printed is its Python

FOLDER is build/cuda by default. The environment is a venv in FOLDER/environment with links to all packages of the
Python that runs this, except to those that a carried wheel replaces: of ``onnxruntime`` and ``onnxruntime-gpu``, which
install the same package, only the carried one can be seen, and onnxruntime finds the CUDA libraries of the ``nvidia-*``
packages beside itself, as after an ordinary installation.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.cuda.loads import PartsError, join, manifest, missing  # noqa: E402

FOLDER = ROOT / "build" / "cuda"
#: What the tests marked ``cuda`` and benches.gpu import, besides what is carried.
NEEDED = (
    *("numpy", "onnx", "onnx_ir", "onnxscript", "torch", "torchaudio", "timm", "safetensors", "ml_dtypes", "jinja2"),
    *("pytest", "pytest_timeout", "grpc", "google.protobuf", "uvloop", "prometheus_client", "click", "rich"),
)
MARKER = ".whole"


def main() -> int:
    """Carry out a command and return the exit code: 0, or 1 after one sentence about what is wrong."""
    command, *rest = sys.argv[1:] or [""]
    folder = Path(rest[0]).resolve() if rest else FOLDER
    if command not in ("arrived", "build") or len(rest) > 1:
        print("usage: python3 tests/cuda/environment.py arrived|build [FOLDER]", file=sys.stderr)
        return 2
    try:
        print(arrived(folder) if command == "arrived" else build(folder))
    except (PartsError, OSError) as error:
        print(f"environment: {error}", file=sys.stderr)
        return 1
    return 0


def arrived(folder: Path) -> str:
    """Return which loads are in ``folder``, which are missing or damaged, and what this machine lacks."""
    wheels = manifest(folder)
    last = max(piece.load for wheel in wheels for piece in wheel.pieces)
    lacking = missing(wheels, folder)
    lines = [f"load {load} of {last}: {lacking.get(load, 'whole')}" for load in range(1, last + 1)]
    lines.append(f"carry next: {', '.join(f'{folder / str(load)}' for load in lacking) or 'nothing, all are here'}")
    return "\n".join([*lines, lacks()])


def lacks() -> str:
    """Return a line: which modules that are needed besides the carried ones this Python does not have."""
    absent = [name for name in NEEDED if not _found(name)]
    return f"Python {sys.version.split()[0]}; modules that are missing here: {', '.join(absent) or 'none'}"


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def build(folder: Path) -> Path:
    """Return the Python of the environment, which is made unless it is there already. Raises PartsError, OSError."""
    wheels = manifest(folder)
    paths = join(wheels, folder)
    environment = folder / "environment"
    python = environment / "bin" / "python"
    state = hashlib.sha256(repr((wheels, sys.executable, sys.version)).encode()).hexdigest()
    marker = environment / MARKER
    if marker.is_file() and marker.read_text(encoding="utf-8") == state:
        return python
    shutil.rmtree(environment, ignore_errors=True)
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)], "venv makes no environment")
    site = environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    _install(paths, site)
    for place in _places():
        link(place, site)
    _add_project(site)
    marker.write_text(state, encoding="utf-8")
    return python


def _install(wheels: list[Path], site: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--no-cache-dir",
    ]
    _run([*pip, "--disable-pip-version-check", "--target", str(site), *map(str, wheels)], "pip installs no wheel")


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["it says nothing"]
        raise PartsError(f"{what} with {sys.executable}: {said[-1]}")


def _places() -> list[Path]:
    """Return the folders that this Python imports installed packages from, the first found first."""
    return [Path(place) for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]


def link(place: Path, site: Path) -> None:
    """Link in ``site`` what is in ``place``, except what is in ``site`` already, and metadata of what that replaces."""
    carried = {path.name for path in site.iterdir() if not path.is_symlink()} - {"bin", "__pycache__"}
    replaced = set()
    for distribution in importlib.metadata.distributions(path=[str(place)]):
        tops = {file.parts[0] for file in distribution.files or () if len(file.parts) > 1 or file.suffix == ".py"}
        if tops & carried:
            replaced |= {name for name in tops if name.endswith((".dist-info", ".egg-info"))}
    for path in sorted(place.iterdir()):
        if path.name not in replaced and path.name != "__pycache__" and not (site / path.name).exists():
            (site / path.name).symlink_to(path)


def _add_project(site: Path) -> None:
    """Let the environment import normfold from this checkout, with the version that its metadata would have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for old in site.glob("normfold-*.dist-info"):
        old.unlink()  # a link
    info = site / f"normfold-{project['version']}.dist-info"
    info.mkdir()
    about = f"Metadata-Version: 2.1\nName: normfold\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(about, encoding="utf-8")
    (site / "normfold.pth").unlink(missing_ok=True)
    (site / "normfold.pth").write_text(f"{ROOT / 'src'}\n", encoding="utf-8")
    for old in site.glob("__editable__*normfold*"):
        old.unlink()


if __name__ == "__main__":
    sys.exit(main())
