"""From a graph of PyTorch calls to the ONNX operators that compute the same, as the folding engine reads them.

The operators are only read; changes of the engine are written back into the calls (:mod:`.rebuilding`). So an operator
here has only the attributes that decide which affine passes it. A call without a rule becomes an operator of unknown
kind, which nothing passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import fx, nn

from normfold.export.fold.modules.shapes import Kind, Shapes
from normfold.export.fold.net import Dim

_TYPES = {
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float32: ir.DataType.FLOAT,
    torch.float64: ir.DataType.DOUBLE,
    torch.int32: ir.DataType.INT32,
    torch.int64: ir.DataType.INT64,
    torch.bool: ir.DataType.BOOL,
}
OPSET = 18
_RANDOM = ("rand", "bernoulli", "multinomial", "normal", "dropout", "rrelu", "poisson", "exponential")


class Opaque(Exception):
    """No rule knows this form of a call."""


@dataclass(frozen=True)
class Call:
    """One call with its arguments by name, including those that a layer holds."""

    node: fx.Node
    given: dict[str, Any]
    layer: nn.Module | None = None
    #: Positional arguments that have no name of their own (``x.view(2, -1)``).
    rest: tuple[Any, ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or the default where it is not given."""
        return self.given.get(name, default)

    @property
    def title(self) -> str:
        """The class of the called layer, or the name of the called function ("MaxPool1d", "max_pool1d")."""
        if self.layer is not None:
            return type(self.layer).__name__
        return title_of(self.node)


def title_of(node: fx.Node) -> str:
    """Return the name of the function or method, or the path of the layer, that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


Rule = Callable[[Call, "Skeleton"], None]


@dataclass
class Skeleton:
    """The operators, and the call that each came from."""

    shapes: Shapes
    nodes: list[ir.Node] = field(default_factory=list)
    #: The call of each operator.
    calls: dict[ir.Node, Call] = field(default_factory=dict)
    #: The fx node whose result a value is, also a constant one; values between the operators of a call are not in it.
    owners: dict[ir.Value, fx.Node] = field(default_factory=dict)
    _values: dict[fx.Node, ir.Value] = field(default_factory=dict)
    _fresh: list[ir.Node] = field(default_factory=list)
    _call: Call | None = None

    def kind(self, node: Any) -> Kind:
        """Return shape and dtype of a call's result; opaque where it is no tensor."""
        kind = self.shapes.results.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(kind, Kind):
            raise Opaque
        return kind

    def dims(self, node: Any) -> tuple[Dim, ...]:
        """Return the shape of a call's result."""
        return self.kind(node).dims

    def value(self, node: fx.Node) -> ir.Value:
        """Return the value of a call's result, always the same one."""
        if node not in self._values:
            kind = self.shapes.results.get(node)
            value = ir.Value(name=node.name)
            if isinstance(kind, Kind):
                value.shape = ir.Shape(kind.dims)
                value.type = ir.TensorType(_TYPES.get(kind.dtype, ir.DataType.UNDEFINED))
            self._values[node] = value
            self.owners[value] = node
        return self._values[node]

    def is_alias(self, node: fx.Node) -> bool:
        """Whether an operator before already computes the result (a part of a split)."""
        return node in self._values

    def array(self, argument: Any) -> NDArray[Any]:
        """Return a parameter, buffer or number as an array, float64 where it is floating; opaque if it is computed."""
        if isinstance(argument, fx.Node):
            argument = self.shapes.constants.get(argument)
        if isinstance(argument, torch.Tensor) and not argument.is_complex():
            tensor = argument.detach().cpu()
            return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
        if isinstance(argument, (int, float)) and not isinstance(argument, bool):
            return np.asarray(argument, np.float64)
        raise Opaque

    def operand(self, argument: Any) -> ir.Value:
        """Return the value of an argument: what a call computes, or a constant."""
        if isinstance(argument, fx.Node) and argument not in self.shapes.constants:
            self.kind(argument)
            return self.value(argument)
        value = self.constant(self.array(argument))
        if isinstance(argument, fx.Node):
            value.name = argument.name
            self.owners[value] = argument
        return value

    def constant(self, array: Any) -> ir.Value:
        """Return a constant."""
        tensor = ir.tensor(np.ascontiguousarray(np.asarray(array)))
        return ir.Value(name="constant", shape=ir.Shape(np.shape(array)), const_value=tensor)

    def unknown(self) -> ir.Value:
        """Return an integer that is known only when the network runs."""
        return ir.Value(name="computed", shape=ir.Shape(()))

    def between(self, op: str, inputs: Sequence[ir.Value | None], dims: Sequence[Dim], **attributes: Any) -> ir.Value:
        """Add an operator within the call, and return its result of the given shape."""
        assert self._call is not None
        value = ir.Value(name=f"{self._call.node.name}.{len(self._fresh)}", shape=ir.Shape(tuple(dims)))
        first = inputs[0]
        assert first is not None
        value.type = first.type
        self._add(op, inputs, [value], attributes)
        return value

    def result(self, op: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> None:
        """Add the operator that returns what the call returns."""
        assert self._call is not None
        self._add(op, inputs, [self.value(self._call.node)], attributes)

    def results(
        self, op: str, inputs: Sequence[ir.Value | None], of: Sequence[fx.Node | None], **attributes: Any
    ) -> None:
        """Add an operator whose outputs are the results of other calls (the items of a tuple), None where unread."""
        assert self._call is not None
        outputs = [
            ir.Value(name=f"{self._call.node.name}.{k}") if n is None else self.value(n) for k, n in enumerate(of)
        ]
        self._add(op, inputs, outputs, attributes)

    def _add(
        self, op: str, inputs: Sequence[ir.Value | None], outputs: list[ir.Value], attributes: dict[str, Any]
    ) -> None:
        assert self._call is not None
        name = self._call.node.name
        node = ir.node(
            op, inputs, attributes=attributes, outputs=outputs, name=name if not self._fresh else f"{name}_{op}"
        )
        self._fresh.append(node)

    def read(self, call: Call, rule: Rule | None) -> None:
        """Add the operators of a call: those of its rule, or one that nothing passes."""
        self._call, self._fresh = call, []
        known = set(self._values)
        try:
            if rule is None:
                raise Opaque
            rule(call, self)
            self._check_types()
        except Opaque:
            for node in self._fresh:
                for i in range(len(node.inputs)):
                    node.replace_input_with(i, None)
            for late in set(self._values) - known:
                self.owners.pop(self._values.pop(late), None)
            self._fresh = []
            self._add(call.title, [self.value(n) for n in self.computed(call.node)], [self.value(call.node)], {})
            self._fresh[0].domain = "normfold.calls"
        for node in self._fresh:
            if call.layer is not None:
                node.metadata_props["normfold.module"] = str(call.node.target)
            self.calls[node] = call
        self.nodes += self._fresh

    def reads_lengths(self, call: Call, of: fx.Node) -> None:
        """Add an operator that reads lengths of a tensor, so that they must not change."""
        self._call, self._fresh = call, []
        self._add("Shape", [self.value(of)], [self.unknown()], {})
        self.calls[self._fresh[0]] = call
        self.nodes += self._fresh

    def computed(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the tensors (and tuples of them) that a call reads and that are not constant."""
        for read in node.all_input_nodes:
            if read not in self.shapes.constants and self.shapes.results.get(read) is not None:
                yield read

    def _check_types(self) -> None:
        """Raise Opaque where a call changes the type of numbers, for which there is no rule."""
        for node in self._fresh:
            types = {
                v.dtype
                for v in (*node.inputs, *node.outputs)
                if v is not None and v.dtype is not None and v.const_value is None
            }
            if node.op_type != "Gather" and len(types) > 1:
                raise Opaque


def constant_calls(graph: fx.Graph) -> frozenset[fx.Node]:
    """Return the calls that compute from parameters and buffers alone, always the same."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        computes = node.op in ("call_function", "call_method") and not any(r in title_of(node) for r in _RANDOM)
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (computes and inputs and all(n in found for n in inputs)):
            found.add(node)
    return frozenset(found)


def entries(dims: Sequence[Dim]) -> int | None:
    """Return the number of entries in a shape, or None where a length is dynamic."""
    return math.prod(d for d in dims if isinstance(d, int)) if all(isinstance(d, int) for d in dims) else None
