"""Thousands of small models: what a server takes to start, in memory, for a hit and for a miss.

    python -m benches.serving.many [--models 5000] [--budget 256MiB] [--requests 300] [--folder FOLDER]

Each model is a network of convolutions of about 90 KB with weights of its own, a manifest and a config.pbtxt. One
worker serves them with ``--load lazily``, without and with a budget, without and with what earlier trials found. The
eager server gets a tenth of the models, because it loads each at the start. One client sends one request after the
other. Prints a table for docs/serving.md. ``--folder`` keeps the models for the next time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from benches.machine import machine
from onnx import TensorProto, helper, numpy_helper

from normfold.serving.client.client import Client
from normfold.serving.load.processes import cpu_seconds, resident_bytes

CONFIG = """max_batch_size: 32
input { name: "x" data_type: TYPE_FP32 dims: [4, 64] }
output { name: "y" data_type: TYPE_FP32 dims: 10 }
"""
X = np.zeros((1, 4, 64), np.float32)


def network(seed: int, width: int = 64) -> bytes:
    """Two convolutions with ReLU, a mean, a linear layer."""
    random = np.random.default_rng(seed)
    weights = {
        "w1": random.standard_normal((width, 4, 5)) / 5,
        "w2": random.standard_normal((width, width, 5)) / 18,
        "w3": random.standard_normal((width, 10)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 4, 64]), ("y", ["N", 10])))
    held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "small", [x], [y], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def write(root: Path, count: int) -> None:
    """Write ``count`` models, unless they are there."""
    for number in range(count):
        folder = root / f"sensor_{number:05}" / "1"
        if (folder.parent / "config.pbtxt").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        data = network(number)
        (folder / "model.onnx").write_bytes(data)
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps({"schema": 1, "files": {"model.onnx": entry}}))
        (folder.parent / "config.pbtxt").write_text(CONFIG)


@contextlib.contextmanager
def serving(root: Path, cache: Path, *options: str) -> Iterator[tuple[str, int, float]]:
    """Address and process id of a server over ``root``, and the seconds until it was ready."""
    command = [sys.executable, "-m", "normfold", "serve", "-r", str(root), "--listen", "127.0.0.1:0", "--workers", "1"]
    command += ["--log-level", "error", "--max-queue-seconds", "60", *options]
    environment = {**os.environ, "NORMFOLD_CACHE_DIR": str(cache)}
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if match := re.match(r"listening on (\S+)", line):
                    yield match[1], process.pid, time.perf_counter() - begun
                    break
        finally:
            process.kill()


def each(pid: int, calls: Sequence[Callable[[], object]]) -> tuple[float, float, float]:
    """Median and 99th percentile of the milliseconds of each call, and the server's CPU milliseconds for one."""
    cpu, times = cpu_seconds([pid]) or 0.0, []
    for call in calls:
        begun = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begun))
    used = 1e3 * ((cpu_seconds([pid]) or 0.0) - cpu) / len(calls)
    return statistics.median(times), float(np.percentile(times, 99)), used


def mebibytes(pid: int) -> float:
    """The memory of the server, once it has given back what it does not need."""
    time.sleep(5)
    return resident_bytes([pid])[0] / 2**20


def row(what: str, figures: tuple[float, float, float]) -> None:
    print(f"| {what} | {figures[0]:.2f} ms, 99 %: {figures[1]:.1f} ms, CPU {figures[2]:.2f} ms |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=5000)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--budget", default="256MiB")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    count, requests = options.models, options.requests
    with tempfile.TemporaryDirectory() as work:
        root, cache = options.folder or Path(work) / "repository", Path(work) / "cache"
        write(root, count)
        names = sorted(path.name for path in root.iterdir())[:count]
        random = np.random.default_rng(0)
        print(f"{machine()} {count:,} models of {len(network(0)) / 1e3:.0f} KB, one worker.\n\n| | |\n|---|---|")

        def asking(client: Client, chosen: Sequence[str]) -> list[Callable[[], object]]:
            return [lambda name=name: client.infer(name, X) for name in chosen]  # type: ignore[misc]

        with (
            serving(root, cache, "--load", "lazily") as (address, pid, seconds),
            Client(address, timeout=300) as client,
        ):
            print(f"| start until ready | {seconds:.2f} s, CPU {cpu_seconds([pid]):.2f} s |")
            print(f"| memory before any request | {mebibytes(pid):.0f} MiB |")
            row("first request ever for a model: read, tried, loaded", each(pid, asking(client, names[:requests])))
            held = mebibytes(pid)
            row("request for a loaded model", each(pid, asking(client, [names[0]] * 20 * requests)))
            row("the same, all in turns", each(pid, asking(client, names[:requests] * 10)))
            print(f"| memory with {requests} models | {held:.0f} MiB |")
        with serving(root, cache, "--load", "lazily") as (address, pid, _), Client(address, timeout=300) as client:
            row("first request of a later start, the model known", each(pid, asking(client, names[:requests])))
        limited = ("--load", "lazily", "--memory-budget", options.budget)
        with serving(root, cache, *limited) as (address, pid, _), Client(address, timeout=300) as client:
            drawn = [names[k] for k in random.zipf(1.2, 20 * requests) % count]
            row(f"drawn by Zipf's law within {options.budget}", each(pid, asking(client, drawn)))
            every = [client.infer(name, X) for name in names]
            answered = {one.model: one.answered for one in client.counters()}
            assert sum(answered.values()) == len(drawn) + len(every), "counters were lost"
            states = [state.state for state in client.models()]
            print(
                f"| after a request for each of {count:,} | {mebibytes(pid):.0f} MiB, {states.count('READY')} loaded |"
            )
        few = Path(work) / "few"
        write(few, count // 10)
        with serving(few, Path(work) / "empty") as (address, pid, seconds), Client(address, timeout=300) as client:
            cpu, held = cpu_seconds([pid]) or 0.0, mebibytes(pid)
            print(f"| eagerly, {count // 10} models | ready in {seconds:.1f} s, CPU {cpu:.1f} s, {held:.0f} MiB |")
            row("eagerly, a request", each(pid, asking(client, [names[0]] * 20 * requests)))


if __name__ == "__main__":
    main()
