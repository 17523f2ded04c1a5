"""The network that folding works on: tensors, and operators that say how a change of their tensors' scale passes.

A *gauge* of a tensor is the affine ``g`` with ``old = g(new)``: it gives what the tensor held before from what it holds
after. Folding is a choice of gauges. A BatchNorm ``y = B(u)`` may go when ``g_y = B ∘ g_u``; linear operators take any
gauge into their weights; every other operator says which gauges of its inputs and outputs belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.channels import AddedChannel, RemovedChannels
from normfold.export.fold.ranges import Range
from normfold.export.graphs.writing import Writing

if TYPE_CHECKING:
    from normfold.export.fold.silencing import Silencing

Dim: TypeAlias = int | str | None

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
#: Why an operator beside one of them takes no affine, and what to do.
QUANTIZED = "computes with quantized numbers; fold the network before it is quantized"


class Refused(Exception):
    """An operator cannot take a change; the message says which operator and why, in a PyTorch user's words."""


class TooDear(Refused):
    """A change is exact, but costs more than it saves."""


@dataclass(eq=False)
class Tensor:
    """A value of the graph that is computed, not constant."""

    value: ir.Value
    #: For each dimension a length, the name of a dynamic length, or None if nothing is known; None if the rank is not.
    shape: tuple[Dim, ...] | None
    producer: Op | None = None
    #: The operators that read it; an operator that reads it twice is there twice.
    readers: list[Op] = field(default_factory=list)
    #: Why its numbers may not change ("is an output of the network"), or "".
    pinned: str = ""

    @property
    def name(self) -> str:
        """Its name in the graph."""
        return self.value.name or "?"

    @property
    def rank(self) -> int:
        """Its number of dimensions; refused where that is unknown."""
        if self.shape is None:
            raise Refused(f"the rank of '{self.name}' is not known")
        return len(self.shape)

    def size(self, axis: int) -> int:
        """Its length along an axis; refused where that is dynamic."""
        self.rank  # noqa: B018 - refuses an unknown rank
        assert self.shape is not None
        size = self.shape[axis]
        if not isinstance(size, int):
            raise Refused(f"the length of axis {axis} of '{self.name}' is dynamic")
        return size

    @property
    def channels(self) -> int | None:
        """The length of axis 1; None where there is no such axis, or its length is dynamic."""
        size = self.shape[1] if self.shape is not None and len(self.shape) > 1 else None
        return size if isinstance(size, int) else None

    def resize(self, axis: int, by: int) -> None:
        """Lengthen an axis, in the graph's value too."""
        size = self.size(axis) + by
        assert self.shape is not None
        self.shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        if self.value.shape is not None:
            self.value.shape = ir.Shape([size if a == axis else d for a, d in enumerate(self.value.shape)])

    def gauge(self, gauges: Mapping[Tensor, Affine]) -> Affine:
        """Return its gauge, the identity where none was set."""
        return gauges[self] if self in gauges else Affine.identity(self.rank)

    def become(self, value: ir.Value, graph: Writing) -> None:
        """Let another value of the graph take this tensor's place."""
        self.value = graph.replace(self.value, value)


class Gauges(dict[Tensor, Affine]):
    """The gauges settled so far; a tensor that is not in it keeps its numbers."""

    #: Where a channel is scaled by 0: True if a clamp holds its constant by two equal bounds. That costs a node, but no
    #: shift has to be carried behind the clamp. False if the clamp passes the scale of 0 on.
    holds_zeros: bool = False


AddedChannels: TypeAlias = Mapping[Tensor, AddedChannel]
RemovedFrom: TypeAlias = Mapping[Tensor, RemovedChannels]
#: For a tensor the constant that each channel (axis 1) always holds, NaN where it varies; None where all vary.
Constants: TypeAlias = Callable[[Tensor], Array | None]


@dataclass(eq=False)
class Op:
    """An operator and the rules of its kind. This class refuses everything; a kind overrides what it allows.

    ``params`` holds what a fold may change; the methods that compute new params are pure, and only ``take`` sets them.
    """

    #: Whether a scale other than 0 and 1 on one side needs one on the other side.
    passes_scale: ClassVar[bool] = False
    #: Whether its constants can take the affine of a tensor that it reads or computes.
    takes_affines: ClassVar[bool] = False
    #: Whether its constants can take the affine of the tensor that it computes.
    emits_affines: ClassVar[bool] = False
    #: Whether it can read a shift past zeros at the ends, from a channel that holds a constant.
    reads_past_zeros: ClassVar[bool] = False
    #: Whether the runtime computes a Relu or Clip behind it in the same kernel.
    fuses_clamps: ClassVar[bool] = False
    #: Whether output channel k depends on channel k of each input alone.
    keeps_channels: ClassVar[bool] = False
    #: Whether it puts tensors side by side.
    joins_tensors: ClassVar[bool] = False
    #: Whether it returns the numbers that it reads.
    is_identity: ClassVar[bool] = False
    #: Whether it is an activation through which no affine passes.
    is_smooth: ClassVar[bool] = False
    #: Whether its own params say which output channels are constant, whatever it reads.
    constant_by_itself: ClassVar[bool] = False
    #: Whether an output channel is constant only where it is constant in every input.
    constant_if_all_are: ClassVar[bool] = False

    node: ir.Node
    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    params: Any = None
    changed: bool = False
    order: int = 0

    def __str__(self) -> str:
        """Its name for a person."""
        return f"'{self.name}' ({self.node.op_type})"

    @property
    def refusal(self) -> str:
        """The reason why no scale or shift passes through an operator that has no rule for them."""
        makers = [v.producer() for v in self.node.inputs if v is not None]
        if any(n is not None and n.op_type in _QUANTIZERS for n in (self.node, *makers)):
            return f"{self} {QUANTIZED}"
        return f"no rule takes a per-channel scale or shift through {self}"

    @property
    def passes_nothing(self) -> bool:
        """Whether it has no rule for gauges, so that it refuses each."""
        return type(self).spread is Op.spread

    @property
    def ends_in_zeros(self) -> bool:
        """Whether it adds zeros before or behind positions, or rows of zeros to the batch."""
        return False

    @property
    def kept(self) -> float:
        """The share of its entries that are left where clamps by channel can move behind it; 1 where they cannot."""
        return 1.0

    @property
    def by_channel_form(self) -> str:
        """The operators that a clamp by channel is written as; "" for any other operator."""
        return ""

    def take(self, params: Any, changed: bool = True) -> None:
        """Take new params; ``changed``: whether the node must be written again for them."""
        self.params, self.changed = params, self.changed or changed

    # How gauges pass.

    def spread(self, gauges: Gauges) -> dict[Tensor, Affine]:
        """Return the gauges that its other tensors must have, given those known; raise Refused where none fit.

        It states all that follows, of known tensors too: whoever asks compares, and refuses what does not fit.
        """
        raise Refused(self.refusal)

    def rewritten(self, gauges: Gauges) -> Any:
        """Return the params under the given gauges."""
        return self.params

    def cost(self, params: Any) -> float:
        """Return the run time with these params, in passes over its output not shared with a convolution."""
        return 0.0

    def dearer(self, params: Any) -> str:
        """Return why these params cost more than they save, or ""."""
        return ""

    def undoes_shift(self, gauges: Gauges) -> bool:
        """Whether a shift that comes to its inputs does not go on to its output."""
        return False

    def stored(self, params: Any) -> Sequence[Array]:
        """Return the arrays of these params that must be finite in the graph's type."""
        return ()

    def rows(self, params: Any) -> Array:
        """Return the largest weight of each row of these params; none of them may underflow the graph's type."""
        return np.empty(0)

    # One channel more, which holds a constant.

    def add_channel(self, added: AddedChannels) -> dict[Tensor, AddedChannel]:
        """Return the channels that its other tensors must get, given those known; raise Refused where none fit.

        It states all that follows, of known tensors too.
        """
        raise Refused(f"{self} cannot carry one more channel")

    def with_channel(self, added: AddedChannels) -> Any:
        """Return the params under the added channels."""
        return self.params

    def is_rewritten(self, params: Any) -> bool:
        """Whether the node must be written again for params with one more channel."""
        return True

    # Channels that are constant.

    def constants(self, known: Mapping[Tensor, Array]) -> list[Array | None]:
        """Return for each output the constant each channel (axis 1) always holds, NaN where it is not constant."""
        return [None] * len(self.outputs)

    def silenced(self, tensor: Tensor, wanted: Affine, silencing: Silencing) -> Affine:
        """Return what entries of an output hold when the linear operators before emit ``wanted``; see Silencing."""
        raise Refused(f"{self} does not keep the channel constant")

    def remove_channels(self, removed: RemovedFrom) -> dict[Tensor, RemovedChannels]:
        """Return the channels that its other tensors lose, given those known; raise Refused where it needs them."""
        raise Refused(f"{self} needs the channel")

    def without_channels(self, removed: RemovedFrom, constants: Constants) -> Any:
        """Return the params without the removed channels, whose constants a reader takes into its bias."""
        return self.params

    # What follows for its outputs from its inputs.

    def range(self, inputs: Sequence[Range]) -> Range | None:
        """Return the range of its first output from those of its inputs; None where nothing is known."""
        return None

    def lengths(self, shapes: Sequence[tuple[Dim, ...]], index: int) -> Sequence[Dim] | None:
        """Return the lengths of one output, None for an axis of which nothing follows; None where nothing follows.

        shapes: those of all inputs, which have one rank.
        """
        return None

    def output_shape(self) -> tuple[Dim, ...] | None:
        """Return the shape of its only output where shape inference found none; None where it cannot be known."""
        return None

    def write(self, graph: Writing) -> None:
        """Write the params into the graph's node; called only where they changed."""


@dataclass(eq=False)
class Net:
    """The operators of one graph in topological order, and how tensors join them."""

    ops: list[Op]
    #: The type of the first floating-point tensor, used where an operator has no type of its own.
    dtype: np.dtype[Any]

    def dtype_of(self, op: Op) -> np.dtype[Any]:
        """Return the type that an operator computes in: its output's or its weights', else the graph's."""
        for value in (*(y.value for y in op.outputs), *op.node.inputs):
            if value is not None and value.dtype in FLOATS:
                return value.dtype.numpy()
        return self.dtype

    def remove(self, op: Op) -> None:
        """Take out an operator of one input and one output: its readers read its input instead."""
        (source,), (result,) = op.inputs, op.outputs
        self.ops.remove(op)
        source.readers.remove(op)
        for reader in result.readers:
            reader.inputs[reader.inputs.index(result)] = source
            source.readers.append(reader)
        source.pinned = source.pinned or result.pinned
        result.producer, result.readers = None, []
