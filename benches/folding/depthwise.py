"""Measure the exact ways to bring a shift through a depthwise convolution with zero padding.

    python -m benches.folding.depthwise [--rounds 15]

A block of Conv-TasNet (Luo and Mesgarani 2019): a convolution of one tap, PRelu, BatchNorm, a depthwise dilated
convolution, Relu, a convolution of one tap. The scale goes into the depthwise weights; the shift t is constant inside,
and missing where the taps read the padding. The ways, which all compute the same:

    batchnorm   the BatchNormalization stays
    add         the scale is folded, the shift stays as an Add: what the fold does
    ends        the bias takes t, and a Concat puts -t/s before and behind in place of the zeros (batch 1)
    expanded    the same for any batch: t is expanded to the batch first
    map         a map (channels, positions) is added behind the convolution (one fixed length)
    corrected   the bias holds what is right inside, and both ends are cut off, corrected and put back

``nothing`` leaves the shift out, which is wrong: no exact way can be faster. Each is timed in one and in two dimensions
(height 1, the lifted variant), with the optimiser on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import numpy as np
from benches.folding.costs import model, times
from numpy.typing import NDArray

WAYS = ("batchnorm", "add", "ends", "expanded", "map", "corrected", "nothing")
#: Channels outside and inside the block, positions, dilation.
SIZES = ((128, 512, 1000, 4), (64, 128, 1000, 1), (16, 32, 256, 2))


def block(way: str, dims: int, outer: int, inner: int, length: int, dilation: int) -> bytes:
    """Return the block with the shift brought through in one way."""
    rng = np.random.default_rng(0)
    high = (1,) * (dims - 1)  # the height of one position
    a = rng.standard_normal((inner, outer, *high, 1)) / np.sqrt(outer)
    w = rng.standard_normal((inner, 1, *high, 3))
    z = rng.standard_normal((outer, inner, *high, 1)) / np.sqrt(inner)
    gamma, beta, mean, var = (rng.uniform(0.5, 1.5, inner) for _ in range(4))
    scale = gamma / np.sqrt(var + 1e-5)
    shift = beta - mean * scale
    by_channel = (inner, *high, 1)
    scaled = w * scale.reshape(inner, *[1] * (w.ndim - 1))
    bias = np.zeros(inner)
    each = (w * shift.reshape(inner, *[1] * (w.ndim - 1))).reshape(inner, 3)  # what each tap gives for the shift
    held: dict[str, NDArray[np.generic]] = {}
    pads = ",".join(map(str, (*[0] * (dims - 1), dilation) * 2))
    x, behind = "p", ""
    middle = ""
    if way == "batchnorm":
        held, middle, x, scaled = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}, _BATCHNORM, "n", w
    elif way == "add":  # of t / s, because the scale is in the weights
        held, middle, x = {"t": (shift / scale).reshape(by_channel)}, "n = Add(p, t)", "n"
    elif way in ("ends", "expanded"):
        bias = each.sum(1)  # the padding holds what the scale and the shift make 0 of
        end = np.broadcast_to(-(shift / scale).reshape(1, *by_channel), (1, inner, *high, dilation))
        held, x, pads = {"t": end}, "n", ",".join(["0"] * 2 * dims)
        if way == "expanded":
            held |= {"rest": np.array(end.shape[1:])}
            middle = "batch = Shape<start=0,end=1>(p) all = Concat<axis=0>(batch, rest) e = Expand(t, all) "
        axis, e = dims + 1, "e" if way == "expanded" else "t"
        middle += f"n = Concat<axis={axis}>({e}, p, {e})"
    elif way == "map":
        seen = np.repeat(each.sum(1)[:, None], length, 1)
        seen[:, :dilation] -= each[:, :1]
        seen[:, -dilation:] -= each[:, 2:]
        held, behind = {"m": seen.reshape(inner, *high, length)}, "c = Add(d, m)"
    elif way == "corrected":
        bias = each.sum(1)
        held = {
            "left": each[:, 0].reshape(by_channel), "right": each[:, 2].reshape(by_channel),
            "zero": np.array([0]), "first": np.array([dilation]), "last": np.array([-dilation]),
            "end": np.array([2**31 - 1]), "axis": np.array([dims + 1]),
        }  # fmt: skip
        behind = _CORRECTED.format(axis=dims + 1)
    d, steps = "d" if behind else "c", ",".join(map(str, (*high, dilation)))
    nodes = f"""u = Conv(x, a) p = PRelu(u, slope) {middle}
        {d} = Conv<group={inner}, dilations=[{steps}], pads=[{pads}]>({x}, w, b) {behind}
        r = Relu(c) y = Conv(r, z)"""
    held = {**held, "a": a, "w": scaled, "b": bias, "z": z, "slope": np.array([0.25])}
    floats = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in held.items()}
    shape = ",".join(map(str, (outer, *high, length)))
    return model(f"(float[1,{shape}] x) => (float[1,{shape}] y) {{ {nodes} }}", floats)


_BATCHNORM = "n = BatchNormalization(p, gamma, beta, mean, var)"
_CORRECTED = """
    l0 = Slice(d, zero, first, axis) inside = Slice(d, first, last, axis) r0 = Slice(d, last, end, axis)
    l1 = Sub(l0, left) r1 = Sub(r0, right) c = Concat<axis={axis}>(l1, inside, r1)"""


def measured(rounds: int) -> Mapping[tuple[int, ...], Mapping[str, float]]:
    """Return the milliseconds of each way, for each number of dimensions and each size."""
    found = {}
    for dims in (1, 2):
        for size in SIZES:
            found[dims, *size] = times({way: block(way, dims, *size) for way in WAYS}, rounds, optimise=True)
    return found


def main() -> None:
    """Print the run time of each way, over that of the Add that the fold leaves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    print(f"{'dims outer inner length dilation':36}" + "".join(f"{way:>11}" for way in WAYS))
    for size, found in measured(parser.parse_args().rounds).items():
        ratios = "".join(f"{found[way] / found['add']:11.2f}" for way in WAYS)
        print(f"{' '.join(map(str, size)):36}{ratios}   add: {found['add']:.3f} ms")


if __name__ == "__main__":
    main()
