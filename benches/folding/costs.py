"""Measure again what the fold counts on: the constants of ``normfold.export.fold.ops.costs``, beside the used values.

    python -m benches.folding.costs [--rounds 15]

Small graphs run in onnxruntime on one thread, in turns; the time is the processor's. Kernels of single operators are
timed in chains without the optimiser, in units of a BatchNormalization of the same tensor. What depends on the layout
or on fusion is timed between two convolutions with the optimiser on, as a ratio of two graphs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import onnx
from benches.folding.measure import session
from benches.interleaved import interleaved
from numpy.typing import NDArray
from onnx import numpy_helper

from normfold.export.fold.ops import costs

#: Channels and positions of the timed tensors; a chain of LINKS operators hides the cost of starting a run.
CHANNELS, LENGTH, LINKS = 16, 4096, 9
#: The constant's name -> the operators of one link, which reads {x} and computes {y}.
KERNELS: dict[str, str] = {
    "BATCHNORM_COST": "{y} = BatchNormalization({x}, c, c, c, c)",
    "SIGNS_COST": "{y} = Mul({x}, s)",
    "SCALE_COST": "{y} = Mul({x}, k)",
    "SHIFT_COST": "{y} = Add({x}, k)",
    "BIAS_COST": "{y} = Add({x}, k)",
    "SCALE_SHIFT_COST": "{y}m = Mul({x}, k) {y} = Add({y}m, k)",
    "RELU_COST": "{y} = Relu({x})",
    "CLIP_COST": "{y} = Clip({x}, low, high)",
    "BOUND_COST": "{y} = Max({x}, k)",
    "BOTH_COST": "{y}m = Max({x}, k) {y} = Min({y}m, k)",
    "PRELU_COST": "{y} = PRelu({x}, k)",
    "PUT_COST": "{y} = Pad({x}, ends, one)",
}
#: What is compared -> the graph that is timed, the graph that it is a ratio to, and the channels of each.
PAIRS: dict[str, tuple[str, str, int, int]] = {
    "BOTH_COST, 1-D: Max and Min against BatchNorm and Relu": ("Max Min", "BatchNorm Relu", 1, 16),
    "UNBLOCKED_COST, 2-D: Max against BatchNorm and Relu": ("Max", "BatchNorm Relu", 2, 16),
    "BLOCK_COST, 2-D: 17 channels against 16": ("17", "16", 2, 16),
    "CARRIER_COST, 1-D: 17 channels against 16": ("17", "16", 1, 16),
}
_BETWEEN = {
    "Max Min": "m = Max(u, k) v = Min(m, q)",
    "BatchNorm Relu": "r = Relu(u) v = BatchNormalization(r, c, c, c, c)",
    "Max": "v = Max(u, k)",
}


def model(text: str, constants: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Return the graph of this text with its constants, as a file."""
    parsed = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> agraph {text}')
    parsed.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return parsed.SerializeToString()


def chain(link: str, links: int) -> bytes:
    """Return a graph of one operator after the other."""
    names = ["x", *(f"v{n}" for n in range(1, links)), "y"]
    nodes = " ".join(link.format(x=a, y=b) for a, b in pairwise(names))
    rng = np.random.default_rng(0)
    by_channel = rng.uniform(0.9, 1.1, (CHANNELS, 1)).astype(np.float32)
    held = {
        "k": by_channel, "s": np.sign(by_channel - 1), "c": by_channel.reshape(-1), "one": np.float32(1),
        "ends": np.array([0, 0, 0, 0, 1, 0]), "low": np.float32(-1), "high": np.float32(1),
    }  # fmt: skip
    return model(f"(float[1,{CHANNELS},{LENGTH}] x) => (float[1,M,{LENGTH}] y) {{ {nodes} }}", held)


def between(kind: str, dims: int, channels: int) -> bytes:
    """Return two convolutions with these operators between them, or with this number of channels."""
    width = int(kind) if kind.isdigit() else channels
    taps, lengths = (3,) * dims, ",".join(["256" if dims == 1 else "32"] * dims)
    pads = ",".join(["1"] * 2 * dims)
    rng = np.random.default_rng(0)
    by_channel = rng.uniform(0.9, 1.1, (width, *(1,) * dims)).astype(np.float32)
    held = {
        "w": rng.standard_normal((width, channels, *taps)).astype(np.float32),
        "z": rng.standard_normal((channels, width, *taps)).astype(np.float32),
        "k": by_channel - 1, "q": by_channel, "c": by_channel.reshape(-1),
    }  # fmt: skip
    middle = _BETWEEN.get(kind, "v = Relu(u)")
    nodes = f"u = Conv<pads=[{pads}]>(x, w) {middle} y = Conv<pads=[{pads}]>(v, z)"
    return model(f"(float[1,{channels},{lengths}] x) => (float[1,{channels},{lengths}] y) {{ {nodes} }}", held)


def times(graphs: Mapping[str, bytes], rounds: int, optimise: bool) -> dict[str, float]:
    """Return the median milliseconds of each graph on noise of its input's shape."""
    runs = {}
    for name, graph in graphs.items():
        ready = session(graph, optimise=optimise)
        shape = ready.get_inputs()[0].shape
        x = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
        runs[name] = lambda ready=ready, x=x: ready.run(None, x)
    return {name: statistics.median(found) for name, found in interleaved(runs, rounds, slice_ms=20).items()}


def convolution(channels: int, taps: int, length: int) -> bytes:
    """Return one 1-D convolution."""
    w = np.random.default_rng(0).standard_normal((channels, channels, taps)).astype(np.float32)
    return model(f"(float[1,{channels},{length}] x) => (float[1,{channels},M] y) {{ y = Conv(x, w) }}", {"w": w})


def node_milliseconds(rounds: int) -> float:
    """Return the time of calling an operator, measured on a tensor of one entry."""
    graphs = {}
    for links in (1, 65):
        names = ["x", *(f"v{n}" for n in range(1, links)), "y"]
        nodes = " ".join(f"{b} = Neg({a})" for a, b in pairwise(names))
        graphs[str(links)] = model(f"(float[1,1,1] x) => (float[1,1,1] y) {{ {nodes} }}", {})
    found = times(graphs, rounds, optimise=False)
    return (found["65"] - found["1"]) / 64


def main() -> None:
    """Print each constant and what it measures now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    ends = {f"{name} {n}": chain(link, n) for name, link in KERNELS.items() for n in (1, LINKS)}
    found = times(ends, rounds, optimise=False)
    link = {name: (found[f"{name} {LINKS}"] - found[f"{name} 1"]) / (LINKS - 1) for name in KERNELS}
    unit = link["BATCHNORM_COST"]
    print(f"in passes; one is a BatchNormalization of {CHANNELS} x {LENGTH}: {1e3 * unit:.1f} µs")
    for name, took in link.items():
        print(f"{name:18} used {getattr(costs, name):6.2f}   now {took / unit:6.2f}")
    pairs = {f"{what} {k}": between(k, dims, n) for what, (a, b, dims, n) in PAIRS.items() for k in (a, b)}
    found = times(pairs, rounds, optimise=True)
    print("\nratios of two graphs")
    for what, (a, b, _, _) in PAIRS.items():
        print(f"{what:56} {found[f'{what} {a}'] / found[f'{what} {b}']:.2f}")
    sizes = [(c, t) for c in (8, 32, 128) for t in (3, 15)]
    found = times({f"{c} {t}": convolution(c, t, LENGTH) for c, t in sizes}, rounds, optimise=True)
    each = unit / (CHANNELS * LENGTH)  # a pass, for each entry
    macs = [c * t / (found[f"{c} {t}"] / (c * LENGTH) / each) for c, t in sizes]
    print(f"\nPASS_MACS  used {costs.PASS_MACS:.0f}   now {min(macs):.0f} to {max(macs):.0f}")
    call = node_milliseconds(rounds) / each * costs.PASS_MACS
    print(f"NODE_MACS  used {costs.NODE_MACS:,.0f}   now {call:,.0f}")


if __name__ == "__main__":
    main()
