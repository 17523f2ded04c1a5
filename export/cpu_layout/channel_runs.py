"""Find the channels of different values that must have the same count.

The channels of a value are a sequence of runs: one run from a convolution, several behind a Concat. An operator that
works channel by channel gives the runs that it reads; values that are added share their runs. A run is free, that is
its count may change, where only convolutions make and read it.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from normfold.export.graphs.constants import Constants

__all__ = ["Run", "Runs"]

#: Operators that work channel by channel and give a finite value for 0; their constant inputs do not vary by channel.
POINTWISE = {
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign",
    "Gelu", "Mish", "Erf", "Abs", "Neg", "Identity", "Clip",
}  # fmt: skip
POOLS = {"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"}
ENTRYWISE = frozenset(POINTWISE | POOLS)
#: The same for operators that broadcast their inputs; constants with one entry for each channel get zeros added.
BROADCAST = frozenset({"Add", "Sub", "Mul", "Max", "Min", "PRelu"})


class Run:
    """Channels that one operator makes together; ``wide`` is the count that they will have."""

    def __init__(self, channels: int, free: bool) -> None:
        self.channels = self.wide = channels
        self.free = free


class Runs:
    """The runs of every value of four axes in one graph, and the constants that have an entry for each channel."""

    def __init__(self, graph: ir.Graph, constants: Constants) -> None:
        self._held = constants
        self._of: dict[ir.Value, list[Run]] = {}
        self._same: dict[Run, Run] = {}
        self._rows: list[tuple[ir.Node, int, int, list[Run]]] = []
        #: Depthwise convolutions: those that read each channel alone.
        self.depthwise: dict[ir.Node, None] = {}
        for node in graph:
            made = self._made(node) if node.domain in ("", "ai.onnx") else None
            if made is not None and channels(node.outputs[0]) == sum(run.channels for run in made):
                self._of[node.outputs[0]] = made
            else:
                self._fix([*node.inputs, *node.outputs])
        inside = (v for v in list(self._of) if any(n.graph is not graph for n, _ in v.uses()))
        self._fix([*graph.outputs, *inside])

    @property
    def values(self) -> list[ir.Value]:
        """The values that have runs."""
        return list(self._of)

    @property
    def free(self) -> list[Run]:
        """The runs whose count may change, without repetition."""
        return list(dict.fromkeys(run for value in self._of for run in self.of(value) if run.free))

    @property
    def rows(self) -> list[tuple[ir.Node, int, int, list[Run]]]:
        """Node, input, axis and runs of every constant that has an entry for each channel along that axis."""
        return [(node, index, axis, [self._root(run) for run in of]) for node, index, axis, of in self._rows]

    def of(self, value: ir.Value) -> list[Run]:
        """Return the runs of a value in their order; runs that are the same are the same object."""
        if value not in self._of:  # made by an operator that fixes the count
            self._of[value] = [Run(channels(value), free=False)]
        return [self._root(run) for run in self._of[value]]

    def _root(self, run: Run) -> Run:
        while run in self._same:
            run = self._same[run]
        return run

    def _fix(self, values: Iterable[ir.Value | None]) -> None:
        """Keep the channel counts of these values as they are."""
        for value in values:
            if value is not None and channels(value):
                for run in self.of(value):
                    run.free = False

    def _made(self, node: ir.Node) -> list[Run] | None:
        """Return the runs of the node's output; None where the node needs its input channels unchanged."""
        first = node.inputs[0] if node.inputs else None
        if first is None or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            return None
        if node.op_type == "Conv":
            return self._convolved(node, first)
        if node.op_type in ENTRYWISE:
            return self.of(first) if channels(first) else None
        if node.op_type == "Concat" and node.attributes.get_int("axis", 0) == 1:
            parts = [value for value in node.inputs if value is not None and channels(value)]
            return [run for part in parts for run in self.of(part)] if len(parts) == len(node.inputs) else None
        if node.op_type == "Div":
            divisor = self._held.get(node.inputs[1])
            return self.of(first) if divisor is not None and divisor.size == 1 and channels(first) else None
        return self._broadcast(node) if node.op_type in BROADCAST else None

    def _convolved(self, node: ir.Node, read: ir.Value) -> list[Run] | None:
        weight, bias = self._held.get(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
        if weight is None or (bias is not None and self._held.get(bias) is None):
            return None
        group = node.attributes.get_int("group", 1)
        if group == 1:
            made = [Run(len(weight), free=True)]
            self._rows.append((node, 1, 1, self.of(read)))
        elif group == len(weight) == channels(read) and weight.shape[1] == 1:
            made = self.of(read)
            self.depthwise[node] = None
        else:
            return None
        self._rows.extend((node, index, 0, made) for index in (1, 2)[: 1 + (bias is not None)])
        return made

    def _broadcast(self, node: ir.Node) -> list[Run] | None:
        count = channels(node.outputs[0])
        shared, rows = [], []
        for index, value in enumerate(node.inputs):
            constant = self._held.get(value)
            if constant is None and value is not None and channels(value) == count:
                shared.append(self.of(value))
            elif constant is not None and constant.ndim in (3, 4) and constant.shape[-3] == count > 1:
                rows.append((node, index, constant.ndim - 3))
            elif channels(value) != 1 and not (constant is not None and (constant.ndim < 3 or constant.shape[-3] == 1)):
                return None
        if not shared or any([r.channels for r in of] != [r.channels for r in shared[0]] for of in shared):
            return None
        for of in shared[1:]:
            for mine, other in zip(shared[0], of, strict=True):
                self._join(self._root(mine), self._root(other))
        self._rows.extend((*row, shared[0]) for row in rows)
        return shared[0]

    def _join(self, one: Run, other: Run) -> None:
        """Make two runs one; it is free only if both were."""
        if one is not other:
            one.free = one.free and other.free
            self._same[other] = one


def channels(value: ir.Value | None) -> int:
    """Return the channel count of a value of four axes, 0 where it is not known."""
    shape = None if value is None else value.shape
    return shape[1] if shape is not None and len(shape) == 4 and isinstance(shape[1], int) else 0
