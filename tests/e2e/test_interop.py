"""grpc-go and grpc-js as clients, directly and behind nginx, haproxy and Envoy: gRPC's interoperability cases.

``make interop`` fetches the programs into build/interop (or $INTEROP). Without them the tests are skipped, and the skip
is printed. The cases are those of doc/interop-test-descriptions.md of grpc/grpc that need no service of their own.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from benches.ports import free_port

from normfold.protos import grpc_service as pb

from .conftest import HEAD, write_model

HERE = Path(__file__).resolve().parent / "interop"
PROGRAMS = Path(os.environ.get("INTEROP", HERE.parents[2] / "build" / "interop")).resolve()
IDENTITY = HEAD + " big (float[N] x) => (float[N] y) { y = Identity (x) }"
#: As in gRPC's large_unary.
LARGE_BYTES = 271_828
CASES = {
    *("empty_unary", "large_unary", "client_compressed_unary", "server_streaming", "ping_pong", "empty_stream"),
    *("cancel_after_begin", "cancel_after_first_response", "timeout_on_sleeping_server"),
    *("status_code_and_message", "special_status_message", "unimplemented_method", "unimplemented_service"),
    *("custom_metadata", "concurrent_large_unary"),
}
#: The command of each client, and the file that must be there.
CLIENTS = {
    "grpc-go": ([str(PROGRAMS / "client-go")], "client-go"),
    "grpc-js": (["node", str(HERE / "client.js")], "node_modules/@grpc/grpc-js"),
}
#: The command of each proxy behind its file, and the name of its configuration.
PROXIES = {
    "nginx": (["root/usr/sbin/nginx", "-e", "stderr", "-c"], "nginx.conf"),
    "haproxy": (["root/usr/sbin/haproxy", "-f"], "haproxy.cfg"),
    "envoy": (["envoy", "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c"], "envoy.yaml"),
}


def program(path: str) -> None:
    """Skip the test if the program is missing."""
    if not (PROGRAMS / path).exists():
        pytest.skip(f"{PROGRAMS / path} is missing; make interop fetches it")


def infer(model: str, x: np.ndarray) -> bytes:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return request.SerializeToString()


@pytest.fixture(scope="module")
def requests(tmp_path_factory) -> Path:
    """A file for each message that the clients send."""
    folder = tmp_path_factory.mktemp("requests")
    messages = {
        "empty": b"",
        "small": infer("big", np.ones(3, np.float32)),
        "large": infer("big", np.random.default_rng(0).standard_normal(LARGE_BYTES // 4 + 1).astype(np.float32)),
        "special": infer("☺ 😈 100 %", np.ones(3, np.float32)),
        "faulty": pb.ModelInferRequest(model_name="big").SerializeToString(),
    }
    for name, data in messages.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module", params=["http2", "grpcio"])
def served(start, tmp_path_factory, request) -> Iterator[str]:
    if not any((PROGRAMS / file).exists() for _, file in CLIENTS.values()):
        pytest.skip(f"no client is in {PROGRAMS}; make interop fetches them")
    repository = tmp_path_factory.mktemp("interop")
    write_model(repository / "big", IDENTITY)
    with start(repository, "--frontend", request.param) as server:
        yield server.address


@contextlib.contextmanager
def proxy(name: str, server: str, folder: Path) -> Iterator[str]:
    """A proxy before ``server``; its address."""
    (binary, *arguments), config = PROXIES[name]
    host, _, server_port = server.rpartition(":")
    port = free_port()
    values = {"folder": folder, "port": port, "server": server, "host": host, "server_port": server_port}
    file = folder / config
    file.write_text((HERE / config).read_text(encoding="utf-8").format(**values), encoding="utf-8")
    libraries = {"LD_LIBRARY_PATH": str(PROGRAMS / "root/usr/lib/x86_64-linux-gnu")} if name == "haproxy" else {}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(PROGRAMS / binary), *arguments, str(file)],
            env={**os.environ, **libraries},
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        until = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            said = (folder / "log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def outcomes(client: str, address: str, requests: Path) -> dict[str, str]:
    """What the client says of each case."""
    command, _ = CLIENTS[client]
    environment = {**os.environ, "NODE_PATH": str(PROGRAMS / "node_modules")}
    done = subprocess.run(
        [*command, address, str(requests)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines() if re.match(r"\w+ ", line))
    assert found.keys() == CASES, done.stdout + done.stderr
    return found


@pytest.mark.interop
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("way", ["direct", *PROXIES])
def test_every_case_is_answered(served, requests, tmp_path, client, way):
    program(CLIENTS[client][1])
    if way == "direct":
        found = outcomes(client, served, requests)
    else:
        program(PROXIES[way][0][0])
        with proxy(way, served, tmp_path) as address:
            found = outcomes(client, address, requests)
    assert found == dict.fromkeys(found, "ok")
