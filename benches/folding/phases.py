"""Measure other ways to compute a large dense convolution, which all give the same.

    python -m benches.folding.phases [--rounds 15]

The sizes are those of CREPE (Kim et al. 2018), Tacotron 2 (Shen et al. 2018) and others with long kernels. The ways:

    whole         one Conv
    channels 4    4 of them, each of a quarter of the input channels, and their Sum
    taps 4        4 of them, each of a quarter of the taps, and their Sum
    product       the windows of the input side by side, and one MatMul
    phases 1      a fast FIR filter (Mou and Duhamel 1991): from even and odd positions x₀, x₁ and taps w₀, w₁
                      y₀ = (w₀+w₁)x₁ + w₀(x₀-x₁)      y₁ = (w₀+w₁)x₁ + w₁(x₀′-x₁)      x₀′: one position later
                  three convolutions of half the taps and positions in place of four; weights 1.5 times as large
    phases 2, 3   each of the three in the same way again: 9/16 and 27/64 of the products, weights 2.25 and 3.4 times
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from itertools import count

import numpy as np
from benches.folding.costs import model, times
from numpy.typing import NDArray

Array = NDArray[np.generic]

WAYS = ("whole", "channels 4", "taps 4", "product", "phases 1", "phases 2", "phases 3")
#: Input channels, output channels, taps, positions.
SIZES = ((1024, 128, 64, 128), (128, 128, 64, 64), (512, 512, 5, 400), (256, 256, 8, 256), (128, 256, 5, 512))


class _Graph:
    """Nodes as text, and constants."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.held: dict[str, Array] = {}
        self._names: Iterator[str] = (f"v{number}" for number in count())

    def node(self, text: str, *arrays: Array, outputs: int = 1) -> str:
        """Add a node; ``{0}``, ``{1}``, … in its text are the arrays. Its output, or several with commas between."""
        names = [next(self._names) for _ in arrays]
        self.held.update(zip(names, arrays, strict=True))
        made = ", ".join(next(self._names) for _ in range(outputs))
        self.nodes.append(f"{made} = {text.format(*names)}")
        return made


def convolution(way: str, inside: int, outside: int, taps: int, length: int) -> bytes:
    """Return a convolution with zero padding that keeps the length, computed in one way."""
    w = np.random.default_rng(0).standard_normal((outside, inside, taps)) / np.sqrt(inside * taps)
    before, behind = (taps - 1) // 2, taps // 2
    graph = _Graph()
    kind, _, number = way.partition(" ")
    if kind == "whole":
        y = graph.node(f"Conv<pads=[{before},{behind}]>(x, {{0}})", _float(w))
    elif kind == "channels":
        parts = graph.node("Split<axis=1>(x)", outputs=int(number)).split(", ")
        each = [
            graph.node(f"Conv<pads=[{before},{behind}]>({part}, {{0}})", _float(weights))
            for part, weights in zip(parts, np.split(w, int(number), 1), strict=True)
        ]
        y = graph.node(f"Sum({', '.join(each)})")
    elif kind == "taps":
        padded = graph.node("Pad(x, {0})", np.array([0, 0, before, 0, 0, behind]))
        each, first = [], 0
        for weights in np.array_split(w, int(number), 2):
            end = first + weights.shape[2] - 1 + length
            part = _part(graph, padded, first, end)
            each.append(graph.node(f"Conv({part}, {{0}})", _float(weights)))
            first += weights.shape[2]
        y = graph.node(f"Sum({', '.join(each)})")
    elif kind == "product":
        padded = graph.node("Pad(x, {0})", np.array([0, 0, before, 0, 0, behind]))
        windows = [_part(graph, padded, tap, tap + length) for tap in range(taps)]
        side = graph.node(f"Concat<axis=1>({', '.join(windows)})")
        y = graph.node(f"MatMul({{0}}, {side})", _float(w.transpose(0, 2, 1).reshape(outside, -1)))
    else:
        whole = _needed(length, taps, int(number))
        padded = graph.node("Pad(x, {0})", np.array([0, 0, before, 0, 0, whole - length - before]))
        y = _phases(graph, padded, w, whole, int(number))
    graph.nodes.append(f"y = Identity({y})")
    text = f"(float[1,{inside},{length}] x) => (float[1,{outside},{length}] y) {{ {' '.join(graph.nodes)} }}"
    return model(text, graph.held)


def _float(weights: Array) -> Array:
    return weights.astype(np.float32)


def _part(graph: _Graph, x: str, first: int, end: int) -> str:
    return graph.node(f"Slice({x}, {{0}}, {{1}}, {{2}})", np.array([first]), np.array([end]), np.array([2]))


def _needed(outputs: int, taps: int, levels: int) -> int:
    """The positions from which ``_phases`` makes this number of outputs."""
    if not levels:
        return outputs + taps - 1
    return 2 * (_needed(outputs // 2, -(-taps // 2), levels - 1) + 1)


def _phases(graph: _Graph, x: str, w: Array, positions: int, levels: int) -> str:
    """The convolution without padding of x, which has this number of positions."""
    if not levels:
        return graph.node(f"Conv({x}, {{0}})", _float(w))
    outside, inside, taps = w.shape
    if taps % 2:
        w = np.concatenate([w, np.zeros((outside, inside, 1))], 2)
    half = positions // 2
    pairs = graph.node(f"Reshape({x}, {{0}})", np.array([1, inside, half, 2]))
    both = graph.node(f"Split<axis=3>({pairs})", outputs=2).split(", ")
    even, odd = (graph.node(f"Squeeze({phase}, {{0}})", np.array([3])) for phase in both)
    now, later, odd = _part(graph, even, 0, half - 1), _part(graph, even, 1, half), _part(graph, odd, 0, half - 1)
    w0, w1 = w[:, :, ::2], w[:, :, 1::2]
    common, first, second = (
        _phases(graph, of, weights, half - 1, levels - 1)
        for of, weights in (
            (odd, w0 + w1),
            (graph.node(f"Sub({now}, {odd})"), w0),
            (graph.node(f"Sub({later}, {odd})"), w1),
        )
    )
    sums = [graph.node(f"Add({common}, {part})") for part in (first, second)]
    apart = [graph.node(f"Unsqueeze({each}, {{0}})", np.array([3])) for each in sums]
    joined = graph.node(f"Concat<axis=3>({', '.join(apart)})")
    return graph.node(f"Reshape({joined}, {{0}})", np.array([1, outside, -1]))


def measured(rounds: int) -> Mapping[tuple[int, int, int, int], Mapping[str, float]]:
    """Return the milliseconds of each way for each size."""
    return {
        size: times({way: convolution(way, *size) for way in WAYS if _possible(way, *size)}, rounds, optimise=True)
        for size in SIZES
    }


def _possible(way: str, inside: int, outside: int, taps: int, length: int) -> bool:
    kind, _, number = way.partition(" ")
    return kind != "phases" or (taps >= 2 ** int(number) and length % 2 ** int(number) == 0)


def main() -> None:
    """Print how many times faster each way is than one Conv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    print(f"{'inside outside taps positions':32}" + "".join(f"{way:>12}" for way in WAYS))
    for size, found in measured(parser.parse_args().rounds).items():
        ratios = "".join(f"{found['whole'] / found[way]:12.2f}" if way in found else f"{'':12}" for way in WAYS)
        print(f"{' '.join(map(str, size)):32}{ratios}   whole: {found['whole']:.2f} ms")


if __name__ == "__main__":
    main()
