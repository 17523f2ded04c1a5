"""The scenarios: each starts its servers, loads them in turns, and returns its figures as plain values."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benches.ports import free_ports
from benches.serving import beside, detour, floor, guarded, overload
from benches.serving.networks import MAX_BATCH, identity, publish, tiny, wide
from benches.serving.roster import CONFIG, FRONTENDS, Command, ask_grpc, echo, peers, serve
from benches.serving.running import CannotRun, Running, environment, running, started

from normfold.serving import frontends
from normfold.serving.client.calls import infer_request
from normfold.serving.load import processes
from normfold.serving.load.calls import Calls, StreamCalls, UnaryCalls
from normfold.serving.load.generator import Load, Slice
from normfold.serving.load.rounds import Target, measure

Figures = dict[str, Any]

PAYLOAD_BYTES = (1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
MODELS = (1, 50, 200)
#: The frontend of servers that are started without an option.
DEFAULT_FRONTEND = frontends.FRONTENDS[0]


@dataclass(frozen=True)
class Bench:
    """Where the scenarios run, and how long."""

    environments: Path
    work: Path
    #: Time for each load and server, over all rounds.
    seconds: float
    rounds: int
    #: How often each server is started, to measure its start.
    starts: int

    def compare(self, targets: Sequence[Target], loads: Sequence[Load]) -> list[Figures]:
        """Measure every target under every load, in turns; return a row for each."""
        for what in measure(targets, loads, self.seconds, self.rounds):
            print(f"  {what}", file=sys.stderr)
        for target in targets:
            target.calls.close()
        return [
            {"server": target.name, "load": str(load), "rounds": [summary(part) for part in target.slices[load]]}
            for load in loads
            for target in targets
        ]

    def start_all(self, stack: contextlib.ExitStack, names: Sequence[str]) -> tuple[list[Running], dict[str, str]]:
        """Start the servers of these names; return those that run, and for each other the reason why it does not."""
        found, failed = [], {}
        for peer in peers():
            if peer.name in names:
                try:
                    found.append(stack.enter_context(started(peer, self.environments, self.work)))
                except CannotRun as error:
                    failed[peer.name] = str(error)
        return found, failed


def summary(part: Slice) -> Figures:
    """Return the figures of one slice: latencies in ms, CPU time in microseconds for each request."""
    return {
        "per_second": part.per_second,
        "cpu_us": part.cpu_us,
        "p50_ms": part.milliseconds(50),
        "p99_ms": part.milliseconds(99),
        "errors": dict(part.errors),
    }


def target(server: Running, calls: Calls, name: str = "") -> Target:
    """Return a running server as a target of the load generator."""
    return Target(name or server.name, calls, server.cpu_seconds)


def all_peers(bench: Bench) -> Figures:
    """Every server with the tiny model, with 1, 16 and 64 requests in flight."""
    asked = {peer.name: peer.calls for peer in peers()}
    with contextlib.ExitStack() as stack:
        servers, failed = bench.start_all(stack, list(asked))
        targets = [target(server, asked[server.name](server.address)) for server in servers]
        return {"rows": bench.compare(targets, [Load(1), Load(16), Load(64)]), "failed": failed}


def in_flight(bench: Bench) -> Figures:
    """Echo, our frontends and Triton, with 1 to 256 requests in flight."""
    with contextlib.ExitStack() as stack:
        servers, failed = bench.start_all(stack, ["grpcio echo", *FRONTENDS, "Triton"])
        targets = [target(server, ask_grpc(server.address)) for server in servers]
        return {"rows": bench.compare(targets, [Load(n) for n in (1, 4, 16, 64, 256)]), "failed": failed}


def stream(bench: Bench) -> Figures:
    """Each of our frontends, called by unary calls and by messages of one stream."""
    with contextlib.ExitStack() as stack:
        servers, failed = bench.start_all(stack, FRONTENDS)
        message = infer_request("tiny", {"x": np.zeros((1, 1, 32), np.float32)}, None, "", "").SerializeToString()
        targets = []
        for server in servers:
            targets.append(target(server, UnaryCalls(server.address, [message]), f"{server.name}, unary"))
            targets.append(target(server, StreamCalls(server.address, [message]), f"{server.name}, stream"))
        return {"rows": bench.compare(targets, [Load(1), Load(16), Load(64)]), "failed": failed}


def payloads(bench: Bench) -> Figures:
    """Echo, and a model that gives its input back: 1 KB to 16 MB both ways, 4 requests in flight."""
    repository = bench.work / "payloads" / "repository"
    publish(identity(), repository / "identity")
    with contextlib.ExitStack() as stack:
        servers, failed = [], {}
        for name, command in _echo_and_frontends(bench, repository):
            port = free_ports(1)[0]
            try:
                ask = _identity(16) if "echo" not in name else ask_grpc
                servers.append(stack.enter_context(running(name, command(port), port, ask, repository.parent)))
            except CannotRun as error:
                failed[name] = str(error)
        rows = []
        for size in PAYLOAD_BYTES:
            targets = [target(server, _identity(size // 4)(server.address)) for server in servers]
            rows += [{**row, "bytes": size} for row in bench.compare(targets, [Load(4)])]
        return {"rows": rows, "failed": failed}


def _echo_and_frontends(bench: Bench, repository: Path) -> list[tuple[str, Callable[[int], Command]]]:
    found: list[tuple[str, Callable[[int], Command]]] = []
    for peer in peers():
        if peer.name == "grpcio echo":
            python = environment("echo", bench.environments)
            found.append((peer.name, lambda port, python=python: echo(python, repository, port, 0)))
        elif peer.name in FRONTENDS and not peer.missing:
            option = peer.name.rpartition(", ")[2]
            found.append((peer.name, lambda port, option=option: serve(repository, port, "--frontend", option)))
    return found


def _identity(elements: int) -> Callable[[str], Calls]:
    x = np.random.default_rng(0).standard_normal(elements).astype(np.float32)
    message = infer_request("identity", {"x": x}, None, "", "").SerializeToString()
    return lambda address: UnaryCalls(address, [message])


def models(bench: Bench) -> Figures:
    """Servers with 1, 50 and 200 loaded models; one of them is called, 16 requests in flight."""
    with contextlib.ExitStack() as stack:
        servers, ready = [], {}
        for count in MODELS:
            folder = bench.work / f"models-{count}"
            for number in range(count):
                publish(tiny(), folder / "repository" / ("tiny" if number == 0 else f"tiny{number}"), CONFIG)
            port = free_ports(1)[0]
            command = serve(folder / "repository", port)
            server = stack.enter_context(running(f"{count} models", command, port, _when_ready, folder))
            servers.append(server)
            sizes = processes.resident_bytes([server.pid])
            ready[str(count)] = {"seconds": server.ready_seconds, "resident_bytes": sizes}
        targets = [target(server, ask_grpc(server.address)) for server in servers]
        return {"rows": bench.compare(targets, [Load(16)]), "ready": ready, "failed": {}, "frontend": DEFAULT_FRONTEND}


def _when_ready(address: str) -> Calls:
    """Return calls of a server whose models are all ready. Raises ConnectionError if they are not."""
    from normfold.serving.client.client import Client, ClientError

    with Client(address, timeout=5) as client:
        try:
            if not client.is_ready():
                raise ConnectionError("not ready")
        except ClientError as error:
            raise ConnectionError(str(error)) from None
    return ask_grpc(address)


def starts(bench: Bench) -> Figures:
    """The time from the start of each server to its first answer, and its resident memory then."""
    rows, failed = [], {}
    for peer in peers():
        seconds, sizes = [], []
        try:
            for _ in range(bench.starts):
                with started(peer, bench.environments, bench.work) as server:
                    seconds.append(server.ready_seconds)
                    sizes.append(processes.resident_bytes([server.pid]))
        except CannotRun as error:
            failed[peer.name] = str(error)
            continue
        rows.append({"server": peer.name, "seconds": seconds, "resident_bytes": sizes})
    return {"rows": rows, "failed": failed}


def batching(bench: Bench) -> Figures:
    """Dynamic batching on and off, for a model that reads 16 MB of weights for 1 row as for 64 rows."""
    x = np.random.default_rng(0).standard_normal((1, 1024)).astype(np.float32)
    message = infer_request("wide", {"x": x}, None, "", "").SerializeToString()
    with contextlib.ExitStack() as stack:
        targets = []
        for name, config in (("off", ""), ("on", "dynamic_batching {}")):
            folder = bench.work / f"batching-{name}"
            head = f"max_batch_size: {MAX_BATCH}\n" + config
            publish(wide(), folder / "repository" / "wide", head + _wide_io())
            port = free_ports(1)[0]
            ask = lambda address: UnaryCalls(address, [message])  # noqa: E731
            command = serve(folder / "repository", port, "--threads", "1")
            server = stack.enter_context(running(f"batching {name}", command, port, ask, folder))
            targets.append(target(server, ask(server.address)))
        rows = bench.compare(targets, [Load(1), Load(16), Load(64)])
        return {"rows": rows, "failed": {}, "frontend": DEFAULT_FRONTEND}


def _wide_io() -> str:
    return """
input { name: "x" data_type: TYPE_FP32 dims: [1024] }
output { name: "y" data_type: TYPE_FP32 dims: [1024] }
instance_group { count: 1 kind: KIND_CPU }
"""


SCENARIOS: dict[str, Callable[[Bench], Figures]] = {
    "peers": all_peers,
    "in-flight": in_flight,
    "stream": stream,
    "payloads": payloads,
    "models": models,
    "starts": starts,
    "batching": batching,
    "floor": lambda bench: floor.floor(bench.seconds / 2, bench.rounds, bench.work),
    "guarded": lambda bench: guarded.guarded(bench.seconds, bench.rounds, bench.work),
    "beside": lambda bench: beside.beside(2 * bench.seconds, bench.rounds, bench.work),
    "detour": lambda bench: detour.detour(bench.seconds, bench.rounds, bench.work),
    "overload": lambda bench: overload.overload(2 * bench.seconds, bench.work),
}
