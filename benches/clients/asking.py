"""One client in its own process: it sends calls for the time that it is given, and prints their times.

    python -m benches.clients.asking CLIENT ADDRESS

Each line on stdin is "IN_FLIGHT SECONDS", each line on stdout the figures in JSON. What a caller does is counted: the
array goes in, the array comes out.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import numpy as np

X = np.zeros((1, 1, 32), np.float32)
MODEL, INPUT, OUTPUT = "tiny", "x", "y"

#: Calls before those that are measured.
_WARMING = 30


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def blocking(ask: Callable[[], object], seconds: float) -> dict[str, float]:
    """Return p50 and CPU time of ``ask`` in microseconds, with one call at a time."""
    for _ in range(_WARMING):
        ask()
    times = []
    cpu, until = _cpu(), time.perf_counter() + seconds
    while (begun := time.perf_counter()) < until:
        ask()
        times.append(time.perf_counter() - begun)
    return {"p50_us": statistics.median(times) * 1e6, "cpu_us": (_cpu() - cpu) / len(times) * 1e6}


async def at_once(ask: Callable[[], Awaitable[object]], in_flight: int, seconds: float) -> dict[str, float]:
    """Return the same with ``in_flight`` calls at a time."""
    await asyncio.gather(*(ask() for _ in range(_WARMING)))
    times = []
    cpu, until = _cpu(), time.perf_counter() + seconds

    async def one() -> None:
        while (begun := time.perf_counter()) < until:
            await ask()
            times.append(time.perf_counter() - begun)

    await asyncio.gather(*(one() for _ in range(in_flight)))
    return {"p50_us": statistics.median(times) * 1e6, "cpu_us": (_cpu() - cpu) / len(times) * 1e6}


def normfold_blocking(address: str, transport: str) -> Callable[[], object]:
    """Return one call of ``Client.infer``."""
    from normfold import Client

    client = Client(address, transport=transport)
    return lambda: client.infer(MODEL, {INPUT: X})[OUTPUT]


def triton_blocking(address: str) -> Callable[[], object]:
    """Return one call of tritonclient."""
    import tritonclient.grpc as triton

    client = triton.InferenceServerClient(address)

    def ask() -> object:
        tensor = triton.InferInput(INPUT, X.shape, "FP32")
        tensor.set_data_from_numpy(X)
        return client.infer(MODEL, [tensor]).as_numpy(OUTPUT)

    return ask


def normfold_async(address: str, transport: str) -> Callable[[], Awaitable[object]]:
    """Return one call of ``AsyncClient.infer``."""
    from normfold import AsyncClient

    client = AsyncClient(address, transport=transport)
    return lambda: client.infer(MODEL, {INPUT: X})


def triton_async(address: str) -> Callable[[], Awaitable[object]]:
    """Return one call of tritonclient.aio."""
    import tritonclient.grpc.aio as triton

    client = triton.InferenceServerClient(address)

    async def ask() -> object:
        tensor = triton.InferInput(INPUT, X.shape, "FP32")
        tensor.set_data_from_numpy(X)
        return (await client.infer(MODEL, [tensor])).as_numpy(OUTPUT)

    return ask


BLOCKING: dict[str, Callable[[str], Callable[[], object]]] = {
    "Client": lambda address: normfold_blocking(address, "http2"),
    "Client, grpcio": lambda address: normfold_blocking(address, "grpcio"),
    "tritonclient": triton_blocking,
}
ASYNC: dict[str, Callable[[str], Callable[[], Awaitable[object]]]] = {
    "AsyncClient": lambda address: normfold_async(address, "http2"),
    "AsyncClient, uvloop": lambda address: normfold_async(address, "http2"),
    "AsyncClient, grpcio": lambda address: normfold_async(address, "grpcio"),
    "tritonclient.aio": triton_async,
}


async def _serve_async(name: str, address: str) -> None:
    ask = ASYNC[name](address)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        in_flight, seconds = line.split()
        print(json.dumps(await at_once(ask, int(in_flight), float(seconds))), flush=True)


def main(name: str, address: str) -> None:
    """Ask as often as stdin says."""
    if name in BLOCKING:
        ask = BLOCKING[name](address)
        for line in sys.stdin:
            print(json.dumps(blocking(ask, float(line.split()[1]))), flush=True)
    elif "uvloop" in name:
        import uvloop

        uvloop.run(_serve_async(name, address))
    else:
        asyncio.run(_serve_async(name, address))


if __name__ == "__main__":
    main(*sys.argv[1:])
