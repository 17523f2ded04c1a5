"""``python -m normfold.protos.compile [--check]``: compile the .proto files.

Writes one descriptor set, ``descriptors.binpb``, and the types of each file, ``<file>.pyi``, beside the .proto files.
``--check`` writes nothing, and fails if these files are not what the .proto files give. This needs ``grpcio-tools``, in
the ``dev`` extra; the package itself does not.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from normfold.protos.pool import DESCRIPTORS

HERE = Path(__file__).resolve().parent

#: A file comes after the files that it imports: the pool takes them in this order.
FILES = (
    "model_config.proto",
    "grpc_service.proto",
    "health.proto",
    "reflection_v1.proto",
    "reflection_v1alpha.proto",
    "onnx_file.proto",
    "metrics.proto",
)


def compiled() -> dict[str, bytes]:
    """Return the compiled files: file name -> content. Raises RuntimeError with protoc's message."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={HERE}", f"--pyi_out={out}"]
        command += [f"--descriptor_set_out={out / DESCRIPTORS}", *FILES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        result = {DESCRIPTORS: (out / DESCRIPTORS).read_bytes()}
        for file in FILES:
            stem = file.removesuffix(".proto")
            text = (out / f"{stem}_pb2.pyi").read_text(encoding="utf-8")
            result[f"{stem}.pyi"] = _types(text).encode()
    return result


def _types(text: str) -> str:
    """Return protoc's types for ``x_pb2`` as types of our module ``normfold.protos.x``, for ``mypy --strict``."""
    text = re.sub(r"^import (\w+)_pb2 as", r"from normfold.protos import \1 as", text, flags=re.MULTILINE)
    text = text.replace("import ClassVar as", "import Any as _Any, ClassVar as")
    return text.replace("_Mapping]", "_Mapping[_Any, _Any]]").replace("**kwargs)", "**kwargs: _Any)")


def main(arguments: list[str]) -> int:
    """Return the exit code: 0 if the compiled files fit the .proto files, or were written."""
    if arguments not in ([], ["--check"]):
        print(f"usage: python -m normfold.protos.compile [--check] (got {' '.join(arguments)})", file=sys.stderr)
        return 2
    made = compiled()
    stale = [name for name, content in made.items() if not _holds(HERE / name, content)]
    if arguments:
        for name in stale:
            print(f"protos/{name} does not fit the .proto files; run: python -m normfold.protos.compile")
        return 1 if stale else 0
    for name in stale:
        (HERE / name).write_bytes(made[name])
        print(f"wrote protos/{name}")
    return 0


def _holds(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
