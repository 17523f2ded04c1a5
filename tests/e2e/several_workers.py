"""A server with several workers, and clients that reach each of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import grpc
import numpy as np
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.protos import health
from normfold.serving.load.processes import listeners, tree

X = np.array([[1, 2, 3, 4]], np.float32)

TWO = ("--workers", "2")

#: The kernel distributes connections by a hash: once in 32768 times this many all go to the same one of two workers.
CONNECTIONS = 16


def workers(server) -> list[int]:
    """The process ids of the workers below a running server."""
    return sorted(set(tree([server.process.pid])) - {server.process.pid})


@contextlib.contextmanager
def connections(address: str, count: int = CONNECTIONS):
    """Channels that share no connection."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50))
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(grpc.insecure_channel(address, options=options)) for _ in range(count)]


def call(channel, method, request=None, **options):
    request = getattr(pb, f"{method}Request")() if request is None else request
    rpc = channel.unary_unary(
        f"/inference.GRPCInferenceService/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=getattr(pb, f"{method}Response").FromString,
    )
    return rpc(request, timeout=30, wait_for_ready=True, **options)


def infer(channel, model="m", **options):
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[X.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=X.shape)
    return call(channel, "ModelInfer", request, **options)


def check(channel) -> int:
    """The health of the server."""
    rpc = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=health.HealthCheckResponse.FromString,
    )
    return rpc(health.HealthCheckRequest(), timeout=30, wait_for_ready=True).status


def counted(channel, model: str) -> int:
    stats = call(channel, "ModelStatistics", pb.ModelStatisticsRequest(name=model)).model_stats
    return sum(each.inference_count for each in stats)


def restart(server, pid: int) -> None:
    """Kill one worker, and wait until another has taken its place and listens."""
    before = set(workers(server))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: (set(workers(server)) - before) & set(listeners(server.address)))


def serve_once(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a server that ends by itself has printed."""
    command = [sys.executable, "-m", "normfold", "serve", *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
