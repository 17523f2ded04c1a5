"""A server under requests of mixed lengths whose model is loaded again and again, and what it holds meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from onnx import numpy_helper, parser

from normfold import AsyncClient, ClientError
from normfold.protos import grpc_service as pb
from normfold.serving.process.memory import resident_bytes

#: y = x w + 1 for each position; w is the identity, so the right answer is known, and has 4 MiB.
WIDTH = 1024
GRAPH = f"""<ir_version: 9, opset_import: ["": 18]> wide (float[N,L,{WIDTH}] x) => (float[N,L,{WIDTH}] y) {{
    one = Constant <value_float: float = 1.0> ()
    z = MatMul (x, w)
    y = Add (z, one)
}}"""
CONFIG = f"""max_batch_size: 8 dynamic_batching {{}}
input {{ name: "x" data_type: TYPE_FP32 dims: [-1, {WIDTH}] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [-1, {WIDTH}] }}
"""

#: The largest number of positions and of rows in a request, and the clients that ask at the same time.
LENGTH, ROWS, CLIENTS = 64, 4, 3
#: Of this many requests one is malformed, and one is given up at once.
MALFORMED, ABANDONED = 50, 20
START_SECONDS = 120.0

#: What is found in the first part is not compared: caches fill, and the allocator finds its size.
FIRST = 1 / 3
#: A server may hold this many bytes, and files and threads, more at the end than after the first part.
GROWTH_BYTES, GROWTH = 24 << 20, 4


@dataclass(frozen=True)
class Sample:
    """What the server holds at one time."""

    seconds: float
    reloads: int
    resident_bytes: int
    files: int
    threads: int


@dataclass
class Soaked:
    """What was asked and answered, and the samples."""

    samples: list[Sample] = field(default_factory=list)
    #: How often each thing happened to a request: "OK" is a right answer.
    answered: Counter[str] = field(default_factory=Counter)
    reloads: int = 0

    def growth(self) -> Sample:
        """The median of the last third of the samples less that after the first part."""
        rest = self.samples[int(len(self.samples) * FIRST) :]
        part = max(1, len(rest) // 2)

        def grown(name: str) -> float:
            ends = [statistics.median(getattr(s, name) for s in samples) for samples in (rest[:part], rest[-part:])]
            return ends[1] - ends[0]

        names = ("seconds", "reloads", "resident_bytes", "files", "threads")
        return Sample(grown("seconds"), *(int(grown(name)) for name in names[1:]))

    def grows(self) -> list[str]:
        """A sentence for each thing that grew; empty: nothing did."""
        growth = self.growth()
        found = []
        if growth.resident_bytes > GROWTH_BYTES:
            found.append(f"memory grew by {growth.resident_bytes >> 20} MiB in {growth.reloads} reloads")
        found += [
            f"{name} grew by {getattr(growth, name)}" for name in ("files", "threads") if getattr(growth, name) > GROWTH
        ]
        return found


def write_repository(root: Path) -> Path:
    """A repository with the model "wide"."""
    model = parser.parse_model(GRAPH)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "w"))
    (root / "wide" / "1").mkdir(parents=True)
    (root / "wide" / "1" / "model.onnx").write_bytes(model.SerializeToString())
    (root / "wide" / "config.pbtxt").write_text(CONFIG)
    return root


@contextlib.contextmanager
def served(repository: Path, frontend: str, module: str = "normfold") -> Iterator[tuple[int, str]]:
    """The process id and the address of a server of one worker; ``module`` is what runs its command line."""
    options = ["--frontend", frontend, "--workers", "1", "--metrics-listen", "off", "--log-level", "error"]
    command = [sys.executable, "-m", module, "serve", "--repository", str(repository), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = None
        for line in process.stdout:
            if found := re.search(r"listening on (\S+)", line):
                break
        assert found, f"the server ended with {process.wait(10)}"
        yield process.pid, found[1]
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def soak(pid: int, address: str, reloads: int, seconds: float, sample_each: float) -> Soaked:
    """Ask the server, and load its model ``reloads`` times, in at least ``seconds``."""
    return asyncio.run(_soak(pid, address, reloads, seconds, sample_each))


async def _soak(pid: int, address: str, reloads: int, seconds: float, sample_each: float) -> Soaked:
    soaked, begun, done = Soaked(), time.monotonic(), asyncio.Event()
    async with AsyncClient(address, timeout=60) as client:

        async def sample() -> None:
            while True:
                soaked.samples.append(_sample(pid, time.monotonic() - begun, soaked.reloads))
                await asyncio.sleep(sample_each)

        asking = [asyncio.create_task(_ask(client, soaked.answered, done, number)) for number in range(CLIENTS)]
        sampling = asyncio.create_task(sample())
        request = pb.RepositoryModelLoadRequest(model_name="wide")
        while soaked.reloads < reloads:
            await client.call("RepositoryModelLoad", request, pb.RepositoryModelLoadResponse)
            soaked.reloads += 1
            due = begun + seconds * soaked.reloads / reloads
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        done.set()
        await asyncio.gather(*asking)
        sampling.cancel()
    soaked.samples.append(_sample(pid, time.monotonic() - begun, soaked.reloads))
    return soaked


async def _ask(client: AsyncClient, answered: Counter[str], done: asyncio.Event, seed: int) -> None:
    drawn = random.Random(seed)
    number = 0
    while not done.is_set():
        number += 1
        shape = (drawn.randint(1, ROWS), drawn.randint(1, LENGTH), WIDTH)
        x = np.full(shape, drawn.randint(0, 1000), np.float32)
        try:
            if number % MALFORMED == 0:
                await client.infer("wide", {"x": x[:, :, :3]})
                answered["malformed and answered"] += 1
            elif number % ABANDONED == 0:
                with contextlib.suppress(ClientError):
                    await client.infer("wide", {"x": x}, timeout=0.0005)
                answered["given up"] += 1
            else:
                y = (await client.infer("wide", {"x": x}))["y"]
                answered["OK" if np.array_equal(y, x + 1) else "wrong"] += 1
        except ClientError as error:
            refused = number % MALFORMED == 0 and error.status is grpc.StatusCode.INVALID_ARGUMENT
            answered["malformed and refused" if refused else f"lost: {error}"] += 1


def _sample(pid: int, seconds: float, reloads: int) -> Sample:
    threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Sample(seconds, reloads, resident_bytes(str(pid)), files, threads)
