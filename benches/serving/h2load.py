"""h2load as a client: it is written in C, so it takes little of the processor and is not ours.

Debian: ``apt install nghttp2-client``; for the floor of HTTP/2 also ``nghttp2-server``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from benches.serving.running import CannotRun

INFER = "inference.GRPCInferenceService/ModelInfer"
_SUCCEEDED = re.compile(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")


def check_present(*programs: str) -> None:
    """Raise CannotRun unless the programs are here."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise CannotRun(f"{', '.join(missing)} not found: apt install nghttp2-client nghttp2-server")


def write_body(message: bytes, path: Path) -> Path:
    """Write a gRPC message as the body of requests; returns ``path``."""
    path.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    return path


def infer(address: str, body: Path, timeout_seconds: int | None = None) -> list[str]:
    """The arguments that make h2load call ModelInfer with ``body``."""
    headers = {"content-type": "application/grpc", "te": "trailers"}
    headers |= {} if timeout_seconds is None else {"grpc-timeout": f"{timeout_seconds}S"}
    return ["-d", str(body), *(part for name, value in headers.items() for part in ("-H", f"{name}: {value}")),
            f"http://{address}/{INFER}"]  # fmt: skip


def start(
    what: list[str], seconds: float, connections: int, in_flight: int, rate: float | None = None
) -> subprocess.Popen[str]:
    """Start h2load for ``seconds``. It keeps ``in_flight`` requests under way.

    With ``rate`` it sends that many requests a second instead, and has at most ``in_flight`` under way.
    """
    command = ["h2load", "-c", str(connections), "-m", str(max(1, in_flight // connections)), "-D", str(round(seconds))]
    command += ["--rps", str(rate / connections)] if rate is not None else []
    return subprocess.Popen([*command, *what], stdout=subprocess.PIPE, text=True)


def succeeded(running: subprocess.Popen[str]) -> int:
    """Wait for h2load's end; the requests that were answered. Raises CannotRun when others failed."""
    text, _ = running.communicate()
    found = _SUCCEEDED.search(text)
    if found is None or running.returncode or any(int(count) for count in found.groups()[1:]):
        raise CannotRun(f"h2load: {text.strip().splitlines()[-1:] or running.returncode}")
    return int(found[1])
