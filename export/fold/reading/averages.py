"""Reader of weighted averages: sums of products with the weights that a Softmax gives over exactly the summed axis."""

from __future__ import annotations

from normfold.export.fold.net import Op
from normfold.export.fold.ops.averages import SoftmaxWeights, WeightedMean
from normfold.export.fold.reading.node import Node
from normfold.export.graphs.domains import STANDARD


def softmax(n: Node) -> Op:
    """Read a Softmax, which lets nothing pass."""
    return SoftmaxWeights(**n.parts())


def weighted_mean(n: Node) -> WeightedMean | None:
    """Return the weighted average that a MatMul, or a Mul and the ReduceSum behind it, computes; None for any other."""
    if len(n.node.inputs) != 2 or n.computed() != [0, 1]:
        return None
    rank = n.rank(0)
    if rank != n.rank(1) or rank < 2:
        return None
    if n.type == "MatMul":
        # The rows of the left matrix are weights of the right one's rows; or the right one's columns weigh the left.
        for weights, x, axis in ((0, 1, rank - 1), (1, 0, rank - 2)):
            if _adds_up_to_1(n, weights, axis):
                return WeightedMean(axis=rank - 2 if x == 1 else rank - 1, **n.parts((x, weights)))
        return None
    return _sum_of_products(n)


def _sum_of_products(n: Node) -> WeightedMean | None:
    product = n.node.outputs[0]
    uses = list(product.uses())
    if len(uses) != 1 or product.is_graph_output() or uses[0].node.op_type != "ReduceSum" or uses[0].idx != 0:
        return None
    total = n.reader(uses[0].node)
    if total.node.graph is not n.node.graph or total.node.domain not in STANDARD:
        return None
    axes = total.given_axes(1)
    if axes is None or len(axes) != 1:
        return None
    axis = axes[0] % n.rank(0)
    for weights, x in ((0, 1), (1, 0)):
        shape, other = n.tensor(x).shape, n.tensor(weights).shape
        assert shape is not None
        assert other is not None
        if shape[axis] == other[axis] and _adds_up_to_1(n, weights, axis):
            parts = n.parts((x, weights)) | {"outputs": total.parts()["outputs"]}
            return WeightedMean(axis=axis, drops_axis=not total.attribute("keepdims", 1), sum=total.node, **parts)
    return None


def _adds_up_to_1(n: Node, index: int, axis: int) -> bool:
    """Whether the entries of an input add up to 1 along an axis: a Softmax over it, perhaps moved since."""
    value = n.value(index)
    while value is not None and value.shape is not None:
        node = value.producer()
        if node is None or node.domain not in STANDARD:
            return False
        before, rank = n.reader(node), len(value.shape)
        if node.op_type == "Softmax":
            over = before.attribute("axis", -1 if before.opset >= 13 else 1) % rank
            # Before opset 13 the axes from this one on are one.
            return bool(over == axis and (before.opset >= 13 or axis == rank - 1))
        if node.op_type == "Transpose":
            axis = (before.attribute("perm") or range(rank - 1, -1, -1))[axis]
        elif node.op_type in ("Squeeze", "Unsqueeze"):
            axes = before.given_axes(1)
            source = node.inputs[0]
            if axes is None or source is None or source.shape is None:
                return False
            whole = max(rank, len(source.shape))
            moved = sorted(a % whole for a in axes)
            if node.op_type == "Unsqueeze":
                if axis in moved:
                    return False
                axis -= sum(a < axis for a in moved)
            else:
                for a in moved:
                    axis += a <= axis
        elif node.op_type != "Identity":
            return False
        value = node.inputs[0]
    return False
