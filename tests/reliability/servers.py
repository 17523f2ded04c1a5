"""Servers in processes of their own, which a test may kill, and the repositories that they serve."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from benches.ports import free_port
from onnx import parser
from tests.reliability.load import factor

from normfold.serving.load.processes import listeners, tree

#: y = factor * x, z = -x.
SCALE = """<ir_version: 9, opset_import: ["": 18]> scale (float[N,4] x) => (float[N,4] y, float[N,4] z) {
    factor = Constant <value_float: float = FACTOR> ()
    y = Mul (x, factor)
    z = Neg (x)
}"""
CONFIG = """
input { name: "x" data_type: TYPE_FP32 dims: [-1, 4] }
output { name: "y" data_type: TYPE_FP32 dims: [-1, 4] label_filename: "labels.txt" }
output { name: "z" data_type: TYPE_FP32 dims: [-1, 4] }
"""
#: A start may wait for a busy machine.
START_SECONDS = 240.0
STOP_SECONDS = 60.0


def model(version: int) -> bytes:
    """The file of ``version`` of the models that the load asks."""
    return parser.parse_model(SCALE.replace("FACTOR", repr(factor(version)))).SerializeToString()


def write_version(folder: Path, version: int, data: bytes | None = None) -> None:
    """Write a version of a model as a whole: beside its place, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{version}"
    beside.mkdir()
    (beside / "model.onnx").write_bytes(model(version) if data is None else data)
    beside.rename(folder / str(version))


def write_repository(root: Path) -> Path:
    """A repository with the model "good", version 1."""
    write_version(root / "good", 1)
    (root / "good" / "config.pbtxt").write_text(CONFIG)
    (root / "good" / "labels.txt").write_text("a\nb\nc\nd\n")
    return root


class ServerProcess:
    """``normfold serve`` in a process of its own. ``lines`` has what it has printed so far."""

    def __init__(
        self, repository: Path, *options: str, listen: str = "127.0.0.1:0", before: tuple[str, ...] = ()
    ) -> None:
        """Start it; ``before`` is a command that runs the server's command line."""
        self._started_with = (repository, *options)
        command = [sys.executable, "-m", "normfold", "serve", "--repository", str(repository), "--listen", listen]
        self.lines: list[str] = []
        self.address = ""
        self._listening = threading.Event()
        self._process = subprocess.Popen(
            [*before, *command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def again(self) -> ServerProcess:
        """The same server once more, on the same port."""
        return ServerProcess(*self._started_with, listen=self.address)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        """The process ids of its workers that listen."""
        below = set(tree([self.pid])) - {self.pid}
        return sorted(below & set(listeners(self.address)))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if match := re.match(r"listening on (\S+)", line):
                self.address = match[1]
                self._listening.set()
        self._listening.set()

    def wait_ready(self) -> ServerProcess:
        """Wait until it listens and is ready. Raises AssertionError with what it printed when it does not."""
        assert self._listening.wait(START_SECONDS), self.printed
        assert self.address, f"it ended: {self.printed}"
        assert any(line.endswith(" ready") for line in self.lines), self.printed
        return self

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return "\n".join(self.lines)

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        code = self._process.wait(timeout=STOP_SECONDS)
        self._reader.join(10)
        return code

    def kill(self) -> None:
        """End it and its workers, unless it has ended."""
        for pid in tree([self.pid]) if self._process.poll() is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(10)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None


def lasting_address() -> str:
    """An address that no other process is given while its server is down: its port is not one of those for port 0."""
    return f"127.0.0.1:{free_port()}"


@contextlib.contextmanager
def serving(repository: Path, *options: str, listen: str = "127.0.0.1:0") -> Iterator[ServerProcess]:
    """A server that is ready, of one worker unless ``options`` say otherwise; if it still runs, SIGTERM must end it."""
    one = () if "--workers" in options else ("--workers", "1")
    server = ServerProcess(repository, *options, *one, listen=listen)
    try:
        yield server.wait_ready()
        if not server.has_ended:
            server.signal(signal.SIGTERM)
            assert server.wait() == 0, server.printed
        assert "Traceback (most recent call last):" not in server.printed, server.printed
    finally:
        server.kill()
