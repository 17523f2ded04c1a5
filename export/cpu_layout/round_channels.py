"""Round channel counts up to whole blocks of onnxruntime's blocked layout, where only convolutions are affected.

    conv(f(conv(x; W₁, b₁)); W₂) = conv(f(conv(x; [W₁; 0], [b₁; 0])); [W₂, 0])

for f that works channel by channel and gives a finite value for 0: the weights that read the new channels are 0.
A convolution runs blocked only if its input channels are whole blocks, a Concat only if those of every part are.
Folding leaves other counts when it adds a carrier channel or removes channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from numpy.typing import NDArray

from normfold.export.cpu_layout.channel_runs import Run, Runs
from normfold.export.graphs.constants import Constants
from normfold.export.graphs.writing import Writing

__all__ = ["BLOCK", "round_up"]

Array = NDArray[Any]

#: Channels in a block on processors with AVX2 and NEON; AVX-512 computes two such blocks at a time.
BLOCK = 8
#: Largest accepted ratio of new to old channel count: up to here the faster kernel makes up for the added work.
MOST = 1.25


def round_up(model: ir.Model) -> bool:
    """Round channel counts up, in place, where every operator that a value meets allows it; return whether one changed.

    Shapes must be known; values that do not have four axes stay as they are.
    """
    graph, opset = model.graph, model.opset_imports.get("", 18)
    constants, writing = Constants(graph, opset), Writing(graph, opset, suffix="widened")
    runs = Runs(graph, constants)
    for run in runs.free:
        wide = -(-run.channels // BLOCK) * BLOCK
        run.wide = wide if wide <= MOST * run.channels else run.channels
    all_of = {value: runs.of(value) for value in runs.values}
    wider = {value: of for value, of in all_of.items() if any(run.wide > run.channels for run in of)}
    for node, index, axis, of in runs.rows:
        if any(run.wide > run.channels for run in of):
            value = node.inputs[index]
            held = constants.get(value)
            assert held is not None
            node.replace_input_with(index, writing.shared(_with_zeros(held, axis, of), like=value))
    for value, of in wider.items():
        assert value.shape is not None
        wide = sum(run.wide for run in of)
        value.shape = ir.Shape([value.shape[0], wide, *value.shape[2:]])
        producer = value.producer()
        if producer in runs.depthwise:
            producer.attributes["group"] = ir.AttrInt64("group", wide)
    passes.RemoveUnusedNodesPass()(model)
    return bool(wider)


def _with_zeros(held: Array, axis: int, of: Sequence[Run]) -> Array:
    """Return an array with zeros added behind each run of channels along an axis."""
    parts, start = [], 0
    for run in of:
        part = np.take(held, range(start, start + run.channels), axis)
        ends = [(0, 0)] * held.ndim
        ends[axis] = (0, run.wide - run.channels)
        parts.append(np.pad(part, ends))
        start += run.channels
    return np.concatenate(parts, axis)
