"""The environments and the processes of the servers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from benches.ports import free_ports
from benches.serving.networks import tiny
from benches.serving.roster import REQUIREMENTS, Command, Peer, X

from normfold.serving.client.errors import ClientError
from normfold.serving.load import processes
from normfold.serving.load.calls import Calls

READY_SECONDS = 90.0
#: The file in an environment that holds the requirements which it was made from.
STAMP = "installed.txt"


class CannotRun(Exception):
    """A server cannot be installed or started here; the message says why."""


@dataclass(frozen=True)
class Running:
    """A server that has given its first answer."""

    name: str
    address: str
    pid: int
    #: Time from the start of the process to its first right answer.
    ready_seconds: float

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that its processes have used so far."""
        return processes.cpu_seconds([self.pid])


def environment(name: str, folder: Path) -> Path:
    """Return the Python of the environment ``name``; make the environment if it is missing. Raises CannotRun."""
    home, text = folder / name, _wanted(name)
    python = home / "bin" / "python"
    if environment_is_installed(name, folder):
        return python
    print(f"installing {name} into {home}", file=sys.stderr)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    requirements = str(REQUIREMENTS / f"{name}.txt")
    for command in ([sys.executable, "-m", "venv", str(home)], [*pip, "--requirement", requirements]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRun(f"cannot be installed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    (home / STAMP).write_text(text, encoding="utf-8")
    return python


def environment_is_installed(name: str, folder: Path) -> bool:
    """Whether the environment ``name`` is in ``folder``, with the packages of today's requirements."""
    stamp = folder / name / STAMP
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == _wanted(name)


def _wanted(name: str) -> str:
    return (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8")


@contextlib.contextmanager
def started(peer: Peer, environments: Path, work: Path) -> Iterator[Running]:
    """Start a server and stop it after the block. Raises CannotRun, also where its answer is wrong."""
    if peer.missing:
        raise CannotRun(peer.missing)
    python = Path(sys.executable) if peer.environment is None else environment(peer.environment, environments)
    folder = work / peer.name.replace(", ", "-").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    port, other = free_ports(2)
    with running(peer.name, peer.command(python, folder, port, other), port, peer.calls, folder) as server:
        check(peer, server.address)
        yield server


def check(peer: Peer, address: str) -> None:
    """Hold the server's answer to onnxruntime's in this process. Raises CannotRun."""
    if peer.answer is None:
        return
    (right,) = onnxruntime.InferenceSession(tiny().SerializeToString()).run(None, {"x": X})
    try:
        found = peer.answer(address)
    except (ClientError, grpc.RpcError, OSError, ValueError) as error:
        raise CannotRun(f"cannot be asked: {error}") from None
    if found.shape != right.shape or not np.allclose(found, right, rtol=1e-5):
        raise CannotRun(f"answers wrongly: {found.ravel()[:4]} of shape {found.shape}, not {right.ravel()[:4]}")


@contextlib.contextmanager
def running(name: str, command: Command, port: int, ask: Callable[[str], Calls], folder: Path) -> Iterator[Running]:
    """Start a process group, wait until it answers at ``port``, end it after the block. Raises CannotRun."""
    log = folder / "log.txt"
    address = f"127.0.0.1:{port}"
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **command.environment}
    begun = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command.arguments, stdout=output, stderr=output, env=settings, cwd=folder, start_new_session=True
        )
    try:
        while not answers(address, ask):
            if process.poll() is not None or time.perf_counter() - begun > READY_SECONDS:
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise CannotRun(f"does not start: {last[0] if last else 'it says nothing'}")
            time.sleep(0.01)
        yield Running(name, address, process.pid, time.perf_counter() - begun)
    finally:
        stop(process)


def answers(address: str, ask: Callable[[str], Calls]) -> bool:
    """Whether the server at ``address`` gives one right answer."""
    try:
        calls = ask(address)
    except ConnectionError:
        return False
    try:
        calls.send(0)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if ended := calls.wait(0.5):
                return ended == [(0, "OK")]
        return False
    except OSError:
        return False
    finally:
        calls.close()


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process group that ``process`` leads."""
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    process.wait()
