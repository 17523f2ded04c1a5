"""The modules that importing a part of serving loads; each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: What knows models, or is slow to load.
MODELS = ("onnxruntime", "normfold.serving.catalog", "normfold.serving.infer", "normfold.serving.runtime")
#: The supervisor knows how workers report a model (catalog/served.py), and nothing else of the catalog.
SUPERVISOR = (
    *(f"normfold.serving.catalog.{name}" for name in ("catalog", "entries", "model", "repository")),
    *("onnxruntime", "normfold.serving.infer", "normfold.serving.runtime", "grpc", "numpy", "google.protobuf"),
)
SCRIPT = "import sys, {module}; print(*sorted(name for name in {names} if name in sys.modules))"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("normfold.serving.frontends.grpcio", MODELS),
        ("normfold.serving.frontends.http2.frontend", (*MODELS, "grpc")),
        ("normfold.serving.errors", (*MODELS, "grpc")),
        ("normfold.serving.rpc.methods", (*MODELS, "grpc")),
        ("normfold.serving.settings", (*MODELS, "grpc", "numpy", "google.protobuf")),
        ("normfold.serving.workers.supervisor", SUPERVISOR),
    ],
)
def test_a_part_does_not_load_what_it_does_not_need(module, absent):
    command = [sys.executable, "-c", SCRIPT.format(module=module, names=absent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


ASK = """
import sys
import numpy as np
import normfold

with normfold.Client(sys.argv[1]) as client:
    print(client.infer("m", {"x": np.ones((1, 4), np.float32)}, version=1)["y"].tolist(), client.is_ready())
print(*sorted({"grpc", "google.protobuf", "asyncio", "ssl"} & set(sys.modules)))
"""


def test_a_client_that_asks_in_plain_text_does_without_grpcio_protobuf_asyncio_and_ssl(server):
    command = [sys.executable, "-c", ASK, server.server.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["[[2.0, 2.0, 2.0, 2.0]] True", ""], done.stderr


SERVE = """
import asyncio, sys
from pathlib import Path
import normfold.cli.serve, normfold.serving.workers.worker
from normfold.serving.server import Server
from normfold.serving.settings import ServerConfig

async def main():
    server = Server(ServerConfig(Path(sys.argv[1]), listen="127.0.0.1:0", load_models=("nb",), grace_seconds=0.0))
    await server.start()
    await server.shut_down()

asyncio.run(main())
print("onnxruntime" in sys.modules, "grpc" in sys.modules)
"""


def test_a_server_without_options_does_without_grpcio(repository):
    command = [sys.executable, "-c", SERVE, str(repository)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["True", "False"], done.stderr
