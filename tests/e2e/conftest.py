"""A model repository, and the real server over it in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from onnx import parser

from normfold.serving.frontends import FRONTENDS

HEAD = '<ir_version: 9, opset_import: ["": 18]>'

#: y = factor * x, z = -x.
SCALE = (
    HEAD
    + """ scale (float[N,4] x) => (float[N,4] y, float[N,4] z) {
        factor = Constant <value_float: float = FACTOR> ()
        y = Mul (x, factor)
        z = Neg (x)
    }"""
)
ADD_SUB = HEAD + " two (float[N,4] a, float[N,4] b) => (float[N,4] s, float[N,4] d) { s = Add (a, b) d = Sub (a, b) }"
TEXT = HEAD + " text (string[N,2] x) => (string[N,2] y) { y = Identity (x) }"

SCALE_CONFIG = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 4 label_filename: "labels.txt" }
output { name: "z" data_type: TYPE_FP32 dims: 4 }
version_policy { all {} }
dynamic_batching {}
"""


def write_model(folder: Path, graph: str, version: int = 1, config: str | None = None) -> None:
    """Write one version of a model from ONNX text."""
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    (folder / str(version) / "model.onnx").write_bytes(parser.parse_model(graph).SerializeToString())
    if config is not None:
        (folder / "config.pbtxt").write_text(config, encoding="utf-8")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m (two versions, labels, batching), nb (no batching, no config), two (two inputs), text (BYTES)."""
    root = tmp_path_factory.mktemp("repository")
    for version, factor in ((1, "2.0"), (2, "3.0")):
        write_model(root / "m", SCALE.replace("FACTOR", factor), version, SCALE_CONFIG)
    (root / "m" / "labels.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    write_model(root / "nb", SCALE.replace("FACTOR", "2.0"))
    write_model(root / "two", ADD_SUB, config="max_batch_size: 8")
    write_model(root / "text", TEXT)
    return root


@dataclass
class Running:
    """A server process: its address and what it has printed."""

    process: subprocess.Popen[str]
    address: str = ""
    lines: list[str] = field(default_factory=list)
    #: The line with which it says that it listens. Lines of the log may come behind it: a thread writes these.
    announced: str = ""

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextlib.contextmanager
def running(repository: Path, *options: str, ready: bool = True) -> Iterator[Running]:
    """``normfold serve`` over ``repository`` on a free port, until SIGTERM, after which it must exit with 0.

    One worker unless ``options`` say otherwise: a test that is not about workers need not start several.
    """
    command = [sys.executable, "-m", "normfold", "serve", "--repository", str(repository), "--listen", "127.0.0.1:0"]
    command += ["--workers", "1", "--max-queue-seconds", "60"]  # a busy machine must not refuse what a test asks
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    server = Running(process)
    listening = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            server.lines.append(line.rstrip("\n"))
            if match := re.match(r"listening on (\S+)", line):
                server.address, server.announced = match[1], server.lines[-1]
                listening.set()
        listening.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert listening.wait(120), "the server did not say that it listens"
        assert server.address, "\n".join(server.lines)
        if ready:
            assert server.announced.endswith(" ready"), "\n".join(server.lines)
        yield server
        if process.poll() is None:
            assert server.stop() == 0, "\n".join(server.lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(10)


@pytest.fixture(scope="session")
def start() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """``running``, for tests with servers of their own: ``with start(repository, "--device", "cpu") as server``."""
    return running


@pytest.fixture(scope="session", params=FRONTENDS)
def address(repository: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server of each frontend over ``repository``, shared by the whole run."""
    with running(repository, "--frontend", request.param) as server:
        yield server.address


@pytest.fixture(params=FRONTENDS)
def frontend(request: pytest.FixtureRequest) -> str:
    """The name of each frontend, for tests with servers of their own."""
    return request.param


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A repository for tests that change it: m and nb."""
    for name, factor in (("m", "3.0"), ("nb", "2.0")):
        write_model(tmp_path / "repository" / name, SCALE.replace("FACTOR", factor))
    return tmp_path / "repository"
