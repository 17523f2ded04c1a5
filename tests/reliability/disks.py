"""A disk that is full: a small tmpfs that only the server sees, with its log, cache and traces on it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import grpc
from tests.reliability.load import Load
from tests.reliability.outcomes import Outcomes
from tests.reliability.servers import ServerProcess, lasting_address

from normfold.protos import grpc_service as pb

#: Mounts a tmpfs of 64 KB at $0, fills it, and runs the rest with its output and its cache there.
FULL = (
    'mount -t tmpfs -o size=64k tmpfs "$0" && { head -c 1000000 /dev/zero > "$0/fill" 2>/dev/null; '
    'NORMFOLD_CACHE_DIR="$0" exec "$@" > "$0/out" 2>&1; }'
)


def why_not() -> str:
    """Why no tmpfs can be mounted here; "" where it can."""
    try:
        done = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except OSError as error:
        return f"unshare: {error.strerror}"
    return done.stderr.strip() if done.returncode else ""


def on_a_full_disk(folder: Path, repository: Path, requests: int, *options: str) -> tuple[ServerProcess, Outcomes]:
    """A server whose log, cache folder and traces are on a full disk, after ``requests`` right answers.

    Nothing that it says can be read, so it is given a port.
    """
    full = folder / "full"
    full.mkdir()
    listen = lasting_address()
    traces = ("--trace-file", str(full / "traces"))
    shell = ("unshare", "-rm", "sh", "-c", FULL, str(full))
    server = ServerProcess(repository, *options, *traces, listen=listen, before=shell)
    try:
        with Load(listen) as load:
            load.wait_for(1)
            trace(listen)
            load.wait_for(requests)
    except BaseException:
        server.kill()
        raise
    return server, load.outcomes


def trace(address: str) -> None:
    """Have the server trace every request."""
    request = pb.TraceSettingRequest()
    request.settings["trace_level"].value.append("TIMESTAMPS")
    request.settings["trace_rate"].value.append("1")
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/TraceSetting",
            request_serializer=pb.TraceSettingRequest.SerializeToString,
            response_deserializer=pb.TraceSettingResponse.FromString,
        )
        assert list(call(request, timeout=30).settings["trace_rate"].value) == ["1"]


def closed(descriptors: str) -> tuple[str, ...]:
    """A command that runs another with these of its standard files closed, such as "1" or "012"."""
    return ("sh", "-c", f'exec "$@" {" ".join(f"{number}>&-" for number in descriptors)}', os.devnull)
