"""Blocks of a fixed size along a dynamic dimension, each computed alone and joined again, as a graph for any number.

    torch.cat([body(block) for block in x.split(100, -1)], -1)

``x.split(n, dim)`` makes ceil(L/n) tensors. That is the length of a Python list, and no graph holds such a list for
every L. But the blocks before the last are equally long. So while torch captures a network, a split gives two tensors:

    blocks    those before the last, side by side along the batch    (count·N, C, n),   count = max(1, ceil(L/n) - 1)
    rest      the last block, of 1 to n entries                      (N, C, L - n·(ceil(L/n) - 1))

The network computes both, and ``torch.cat``, ``torch.stack`` or the sum of the two results takes the blocks out of the
batch again. Where there is only the last block, ``blocks`` is that, filled up with zeros, and is left out at the end:
some kernels end the process on an empty batch. A split along the batch itself gives the whole tensor as its only block.

This is the network where it treats the items of a batch alone, as inference does. The proof decides it, at sizes with
one block and with several (:mod:`normfold.export.inputs.blocks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnxscript import opset18
from torch import Tensor

from normfold.export.errors import CaptureError
from normfold.export.inputs.blocks import Blocks
from normfold.export.inputs.specs import Dimension, InputSpec
from normfold.export.user_code import current_line

__all__ = ["BLOCKS", "BlockSplits", "TooFewBlocks"]


class TooFewBlocks(Exception):
    """The sizes of the trace have no room for two blocks and a rest."""

    def __init__(self, blocks: Blocks):
        super().__init__(str(blocks))
        self.blocks = blocks


@dataclass(frozen=True)
class _Cut:
    """One split: the tensor that was cut, the size and axis of the blocks, and the sizes of both results' batches."""

    whole: Tensor
    each: int
    axis: int
    blocks: Tensor
    rest: Tensor


class BlockSplits:
    """The splits of one capture: their replacements, and what was cut where."""

    def __init__(self, specs: Sequence[InputSpec]):
        self.found: list[Blocks] = []
        self._specs = specs
        self._symbols: dict[Any, str] = {}
        self._cuts: list[_Cut] = []

    def see(self, inputs: Sequence[Tensor]) -> None:
        """Note which dimensions of the inputs the symbols in the sizes of tensors stand for."""
        for spec, tensor in zip(self._specs, inputs, strict=True):
            for d, size in zip(spec.dims, tensor.shape, strict=True):
                if isinstance(d, Dimension) and isinstance(size, torch.SymInt):
                    self._symbols[size.node.expr] = d.name

    def split(self, tensor: Tensor, split_size_or_sections: Any = None, dim: int = 0, **given: Any) -> Any:
        """Return the blocks of a dynamic dimension as one or two tensors; None for every other split."""
        each = given.get("split_size", split_size_or_sections)
        axis = dim % tensor.dim()
        size = tensor.shape[axis]
        if not isinstance(each, int) or not isinstance(size, torch.SymInt):
            return None
        blocks = self._blocks(each, size)
        if blocks.only_one(self._specs):
            return (tensor,)
        self.found.append(blocks)
        if axis == 0:
            return (tensor,)
        if size.node.hint < 2 * each + min(2, each):
            raise TooFewBlocks(blocks)
        cut = _Cut(tensor, each, axis, take_blocks(tensor, each, axis), take_rest(tensor, each, axis))
        self._cuts.append(cut)
        return cut.blocks, cut.rest

    def _blocks(self, each: int, size: torch.SymInt) -> Blocks:
        expression, symbols = size.node.expr, self._symbols
        used = [s for s in symbols if s in expression.free_symbols]
        if len(used) != len(expression.free_symbols):  # a size that depends on the values of the input
            raise CaptureError(str(Blocks(each, current_line(), (), lambda sizes: 0)))
        return Blocks(
            each,
            current_line(),
            tuple(symbols[s] for s in used),
            lambda sizes: int(expression.subs({s: sizes[symbols[s]] for s in used})),
        )

    def join(self, tensors: Any, dim: int = 0, *, stacked: bool, **given: Any) -> Tensor | None:
        """Return the results of both parts of a split joined; None for every other list of tensors."""
        if given or not isinstance(tensors, (tuple, list)) or len(tensors) != 2:
            return None
        blocks, rest = tensors
        if not isinstance(blocks, Tensor) or not isinstance(rest, Tensor):
            return None
        for cut in self._cuts:
            if _equal(blocks.shape[:1], cut.blocks.shape[:1]) and _equal(rest.shape[:1], cut.rest.shape[:1]):
                axis = dim % (rest.dim() + stacked)
                joined: Tensor = join_blocks(blocks, rest, cut.whole, cut.each, cut.axis, axis, stacked)
                return joined
        return None

    def add(self, *terms: Any, **given: Any) -> Tensor | None:
        """Return the sum of the results of all blocks; None for every other sum."""
        joined = self.join(terms, 0, stacked=True, **given) if self._cuts else None
        return None if joined is None else joined.sum(0)


def _equal(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are equal for every size; comparing symbols with == would fix them."""
    return [_expression(size) for size in a] == [_expression(size) for size in b]


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _counts(size: Any, each: int) -> tuple[Any, Any]:
    """Return the number of blocks before the last, and the same, but at least 1."""
    full = (size - 1) // each
    return full, torch.sym_max(full, 1)  # type: ignore[no-untyped-call]


@torch.library.custom_op("normfold::take_blocks", mutates_args=())
def take_blocks(input: Tensor, each: int, axis: int) -> Tensor:
    """Return the blocks before the last one along the batch, block by block."""
    full, count = _counts(input.shape[axis], each)
    blocks = [input.narrow(axis, i * each, each) for i in range(full)]
    if not blocks:
        short = [0, 0] * (input.dim() - 1 - axis) + [0, count * each - input.shape[axis]]
        blocks = [torch.nn.functional.pad(input, short)]
    return torch.cat(blocks, 0)


@take_blocks.register_fake
def _(input: Tensor, each: int, axis: int) -> Tensor:
    _, count = _counts(input.shape[axis], each)
    return input.new_empty((count * input.shape[0], *input.shape[1:axis], each, *input.shape[axis + 1 :]))


@torch.library.custom_op("normfold::take_rest", mutates_args=())
def take_rest(input: Tensor, each: int, axis: int) -> Tensor:
    """Return the last block."""
    full, _ = _counts(input.shape[axis], each)
    return input.narrow(axis, full * each, input.shape[axis] - full * each).clone()


@take_rest.register_fake
def _(input: Tensor, each: int, axis: int) -> Tensor:
    full, _ = _counts(input.shape[axis], each)
    return input.new_empty((*input.shape[:axis], input.shape[axis] - full * each, *input.shape[axis + 1 :]))


@torch.library.custom_op("normfold::join_blocks", mutates_args=())
def join_blocks(blocks: Tensor, rest: Tensor, whole: Tensor, each: int, cut: int, axis: int, stacked: bool) -> Tensor:
    """Return what ``torch.cat`` or ``torch.stack`` along ``axis`` gives for the results of the single blocks.

    whole was cut into blocks of ``each`` along its axis ``cut``.
    """
    full, count = _counts(whole.shape[cut], each)
    single = [*blocks.chunk(count, 0)[:full], rest]
    return torch.stack(single, axis) if stacked else torch.cat(single, axis)


@join_blocks.register_fake
def _(blocks: Tensor, rest: Tensor, whole: Tensor, each: int, cut: int, axis: int, stacked: bool) -> Tensor:
    full, _ = _counts(whole.shape[cut], each)
    shape: list[Any] = list(rest.shape)
    if stacked:
        shape.insert(axis, full + 1)
    else:
        shape[axis] = (full * rest.shape[0] if axis == 0 else full * blocks.shape[axis]) + rest.shape[axis]
    return rest.new_empty(shape)


# The same in ONNX. The operators' own annotations do not allow the result of one as an operand of the next: hence Any.


def _ints(*values: int) -> Any:
    return opset18.Constant(value_ints=list(values))


def _size(op: Any, x: Any, axis: int) -> Any:
    return op.Shape(x, start=axis, end=axis + 1)


def _onnx_counts(op: Any, x: Any, each: int, axis: int) -> tuple[Any, Any]:
    full = op.Div(op.Sub(_size(op, x, axis), _ints(1)), _ints(each))
    return full, op.Max(full, _ints(1))


def _shape(op: Any, *parts: Any) -> Any:
    return op.Concat(*parts, axis=0)


def _moved(op: Any, x: Any, rank: int, old: int, new: int) -> Any:
    """Move an axis, as ``torch.movedim`` does."""
    order = [axis for axis in range(rank) if axis != old]
    order.insert(new, old)
    return x if order == list(range(rank)) else op.Transpose(x, perm=order)


def _blocks_in_onnx(input: Any, each: int, axis: int) -> Any:
    op: Any = opset18
    rank = len(input.shape)
    _, count = _onnx_counts(op, input, each, axis)
    entries = op.Mul(count, _ints(each))
    taken = op.Slice(input, _ints(0), entries, _ints(axis))
    short = op.Max(op.Sub(entries, _size(op, input, axis)), _ints(0))
    behind = [_ints(*[0] * (rank - 1 - axis))] if axis < rank - 1 else []
    filled = op.Pad(taken, _shape(op, _ints(*[0] * (rank + axis)), short, *behind))
    after = [op.Shape(input, start=axis + 1)] if axis < rank - 1 else []
    apart = op.Reshape(filled, _shape(op, op.Shape(input, start=0, end=axis), count, _ints(each), *after))
    ahead = _moved(op, apart, rank + 1, axis, 0)
    batch = op.Mul(count, _size(op, input, 0))
    middle = [op.Shape(input, start=1, end=axis)] if axis > 1 else []
    return op.Reshape(ahead, _shape(op, batch, *middle, _ints(each), *after))


def _rest_in_onnx(input: Any, each: int, axis: int) -> Any:
    op: Any = opset18
    full, _ = _onnx_counts(op, input, each, axis)
    return op.Slice(input, op.Mul(full, _ints(each)), _size(op, input, axis), _ints(axis))


def _joined_in_onnx(blocks: Any, rest: Any, whole: Any, each: int, cut: int, axis: int, stacked: bool) -> Any:
    op: Any = opset18
    rank = len(rest.shape)
    full, count = _onnx_counts(op, whole, each, cut)
    if axis == 0 and not stacked:
        kept = op.Slice(blocks, _ints(0), op.Mul(full, _size(op, rest, 0)), _ints(0))
        return op.Concat(kept, rest, axis=0)
    batch = _size(op, rest, 0)
    inner = [op.Shape(blocks, start=1)] if rank > 1 else []
    apart = op.Reshape(blocks, _shape(op, count, batch, *inner))
    moved = _moved(op, apart, rank + 1, 0, axis)
    if stacked:
        kept = op.Slice(moved, _ints(0), full, _ints(axis))
        return op.Concat(kept, op.Unsqueeze(rest, _ints(axis)), axis=axis)
    each_result = _size(op, blocks, axis)
    before = [op.Shape(blocks, start=1, end=axis)] if axis > 1 else []
    after = [op.Shape(blocks, start=axis + 1)] if axis < rank - 1 else []
    flat = op.Reshape(moved, _shape(op, batch, *before, op.Mul(count, each_result), *after))
    kept = op.Slice(flat, _ints(0), op.Mul(full, each_result), _ints(axis))
    return op.Concat(kept, rest, axis=axis)


#: For ``torch.onnx.export(custom_translation_table=…)``.
BLOCKS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.normfold.take_blocks.default: _blocks_in_onnx,
    torch.ops.normfold.take_rest.default: _rest_in_onnx,
    torch.ops.normfold.join_blocks.default: _joined_in_onnx,
}
