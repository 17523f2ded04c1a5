"""Cross-layer equalisation: the scale of every channel chosen so that few bits hold all channels of a tensor well.

Int8 has one scale for all channels of an activation, and one for each row of a weight (all that makes one output
channel). A channel may be divided by s > 0 where a tensor is computed and multiplied by s where it is read (Nagel et
al. 2019, arXiv:1906.04721, section 4.1); in float this changes nothing, and ReLU, pools, concatenations and sums pass s
on. With r the range of the channels of an activation and w the largest weight with which the next layers read them,
each beside the largest of its row,

    s = r^a w^(a - 1)

a = 1 makes all channels of the activation equally wide, a = 0 all columns of the next weights equally large; a = 1/2
shares what is left between both. Of these that one is taken, area by area, with which the rounding of activation and
weights, taken as independent and uniform, adds least to the layers that read:

    step_x^2 sum_i,k (W_oik s_i)^2 + step_o^2 sum_i,k E[x_i^2] / s_i^2,    summed over o
    step_x = (range of all channels i, each divided by s_i) / 255,   step_o = 2 max_i,k |W_oik s_i| / 127
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normfold.export.fold.affine import Array
from normfold.export.fold.engine.areas import Area, along, areas_of
from normfold.export.fold.engine.driver import survives_rounding
from normfold.export.fold.engine.spreading import spread
from normfold.export.fold.engine.streams import Streams
from normfold.export.fold.net import Gauges, Net, Refused
from normfold.export.fold.ops.linear import Linear

__all__ = ["Channels", "equalise_net"]

#: The exponents a that are tried.
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
#: A channel or column that is smaller than this part of the largest counts as if it had that size: a channel that is
#: always 0 has no range.
LEAST = 1e-6
#: Scales are kept only where the rounding that they leave is below this part of what it was.
WORTH = 0.95
#: The numbers of steps in the range of an activation and of a weight, of which 7 bits are used.
STEPS, WEIGHT_STEPS = 255.0, 127.0


@dataclass(frozen=True, eq=False)
class Channels:
    """Statistics of the channels of a tensor on inputs that calibrate, each (length,) along one axis."""

    low: Array
    high: Array
    #: The mean of the squares.
    square: Array

    @property
    def reach(self) -> Array:
        """The width of each channel's range, 0 included."""
        width: Array = np.maximum(self.high, 0) - np.minimum(self.low, 0)
        return width

    def over(self, scale: Array) -> Channels:
        """Return the channels divided by ``scale``."""
        return Channels(self.low / scale, self.high / scale, self.square / scale**2)


#: From the name of a tensor and the axis of its channels to what they hold.
Measure = Callable[[Mapping[str, int]], Mapping[str, Channels]]


def equalise_net(net: Net, measure: Measure) -> list[str]:
    """Choose the scales of every area and change the params; return the names of the operators that made it.

    ``measure`` is called once. In float the network stays the same function.
    """
    streams = Streams(net, math.inf)
    found = [area for area in areas_of(net, streams) if area.size > 1 and area.readers]
    axes = {x.name: area.tensors[x].axis for area in found for _, x in area.readers}
    held = dict(measure(axes))
    changed = []
    for area in found:
        if any(x.name not in held for _, x in area.readers):
            continue
        scales = best_scales(area, held)
        if scales is None or not _apply(area, scales, net, streams):
            continue
        for tensor, slices in area.tensors.items():
            if tensor.name in held:
                held[tensor.name] = held[tensor.name].over(_at(slices.channel, scales))
        assert area.start.producer is not None
        changed.append(area.start.producer.name)
    return changed


def best_scales(area: Area, held: Mapping[str, Channels]) -> Array | None:
    """Return the scale of each channel of the area, (size,); None where none leaves less rounding."""
    reach, column = np.zeros(area.size), np.zeros(area.size)
    for op, x in area.readers:
        channel = area.tensors[x].channel
        inside = channel >= 0
        widths = held[x.name].reach
        np.maximum.at(reach, channel[inside], widths[inside] / max(widths.max(), 1e-300))
        np.maximum.at(column, channel[inside], _columns(op)[inside])
    reach, column = np.maximum(reach, LEAST), np.maximum(column, LEAST)
    tried = [np.ones(area.size), *(reach**a * column ** (a - 1) for a in EXPONENTS)]
    tried = [scales / np.exp(np.log(scales).mean()) for scales in tried]
    rounding = [_rounding(area, held, scales) for scales in tried]
    best = int(np.argmin(rounding))
    return tried[best] if rounding[best] < WORTH * rounding[0] else None


def _columns(op: Linear) -> Array:
    """Return for each channel that is read its largest weight beside the largest of the same row, (in,)."""
    sizes = _taps(op).max(axis=3)
    rows = sizes.max(axis=2, keepdims=True)
    columns: Array = np.divide(sizes, rows, out=np.zeros_like(sizes), where=rows > 0).max(axis=1).reshape(-1)
    return columns


def _rounding(area: Area, held: Mapping[str, Channels], scales: Array) -> float:
    """Return the variance that rounding adds to what reads the area, over the mean square of what it computes."""
    total = 0.0
    for op, x in area.readers:
        scale = _at(area.tensors[x].channel, scales)
        now, taps = held[x.name].over(scale), _taps(op)
        groups, _, inner, _ = taps.shape
        weight = taps * scale.reshape(groups, 1, inner, 1)
        square = now.square.reshape(groups, 1, inner)
        power = ((weight**2).sum(axis=3) * square).sum()
        step = (max(now.high.max(), 0) - min(now.low.min(), 0)) / STEPS
        rows = 2 * weight.max(axis=(2, 3)) / WEIGHT_STEPS
        added = step**2 * (weight**2).sum() + (rows**2 * square.sum(axis=2) * taps.shape[3]).sum()
        total += float(added / power) if power > 0 else 0.0
    return total


def _taps(op: Linear) -> Array:
    """Return the sizes of the weights, (groups, out, in, taps)."""
    weight = np.abs(op.params.weight)
    sizes: Array = weight.reshape(*weight.shape[:3], -1)
    return sizes


def _at(channel: NDArray[np.int64], scales: Array) -> Array:
    """Return the scale of each slice of a tensor; 1 outside of the area."""
    found: Array = np.append(scales, 1.0)[channel]
    return found


def _apply(area: Area, scales: Array, net: Net, streams: Streams) -> bool:
    """Give the area these scales; return False, with nothing changed, where a weight would leave its type's range."""
    gauges = Gauges()
    try:
        ops = spread(((area.start, along(area, scales)),), gauges, streams)
        params = {op: op.rewritten(gauges) for op in ops}
        for op, new in params.items():
            survives_rounding(op, new, net.dtype_of(op))
    except Refused:
        return False
    for op, new in params.items():
        if new is not op.params:
            op.take(new)
    return True
