"""From an ONNX graph to the network that folding works on: one reader for each operator, in one table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.fold.affine import Affine, batchnorm
from normfold.export.fold.constants import Constants
from normfold.export.fold.net import FLOATS, Dim, Net, Op, Tensor
from normfold.export.fold.ops.joins import Product, Sum
from normfold.export.fold.ops.layout import Concat, Pad, Reshape, Select, Transpose
from normfold.export.fold.ops.linear import Embedding, Gates, Linear, Recurrent, Weights
from normfold.export.fold.ops.pointwise import Activation, Bounds, Clamp, Same, Scaled, Scaling, Shape, Sloped
from normfold.export.fold.ops.pools import Pooling


class Node:
    """One node with what its reader asks of it: attributes, constants, tensors."""

    def __init__(self, node: ir.Node, reading: Reading) -> None:
        self.node = node
        self.type = node.op_type
        self._reading = reading

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value, or the default where it is not set."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def constant(self, index: int) -> NDArray[Any] | None:
        """Return the constant that an input holds, or None."""
        return self._reading.constants.get(self.node.inputs[index]) if index < len(self.node.inputs) else None

    def integers(self, index: int) -> list[int | None] | None:
        """Return a vector of integers that an input holds, None for those that are computed."""
        return self._reading.constants.integers(self.node.inputs[index]) if index < len(self.node.inputs) else None

    def has(self, index: int) -> bool:
        """Whether an input is given at all."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def computed(self) -> list[int]:
        """Return the places of the inputs that are not constant."""
        return [i for i, v in enumerate(self.node.inputs) if v is not None and self._reading.constants.get(v) is None]

    def only_first_read(self) -> bool:
        """Whether nothing reads its outputs but the first."""
        return not any(v.uses() or v.is_graph_output() for v in self.node.outputs[1:])

    def channels_kept(self) -> bool:
        """Whether the output has as many channels as the input, as its shape or the convolution behind it tells."""
        x, y = self.tensor(0), self.tensor_out()
        if x.shape is None or len(x.shape) < 3 or not isinstance(x.shape[1], int):
            return False
        if y.shape is not None and len(y.shape) == len(x.shape) and y.shape[1] == x.shape[1]:
            return True
        for reader, index in self.node.outputs[0].uses():
            weight = reader.inputs[1] if reader.op_type == "Conv" and index == 0 else None
            if weight is not None and weight.shape is not None:
                groups = reader.attributes["group"].as_int() if "group" in reader.attributes else 1
                return bool(weight.shape[1] == x.shape[1] // groups)
        return False

    def axes(self, index: int) -> tuple[int, ...] | None:
        """Return axes given as attribute (older opsets) or as an input; None where they are not given."""
        given = self.attribute("axes")
        if given is None and self.has(index):
            given = self.constant(index)
            if given is None:
                raise NotKnown
        return None if given is None else tuple(int(a) for a in np.atleast_1d(np.asarray(given)))

    def tensor(self, index: int) -> Tensor:
        """Return the tensor of a computed input."""
        value = self.node.inputs[index]
        assert value is not None
        return self._reading.tensor(value)

    def tensor_out(self) -> Tensor:
        """Return the tensor of the first output."""
        return self._reading.tensor(self.node.outputs[0])

    def rank(self, index: int = 0) -> int:
        """Return the rank of a computed input."""
        shape = self.tensor(index).shape
        if shape is None:
            raise NotKnown
        return len(shape)

    def parts(self, data: Sequence[int] = (0,)) -> dict[str, Any]:
        """Return node, name, inputs and outputs for an operator that computes from the given inputs."""
        return {
            "node": self.node,
            "name": self._reading.name(self.node),
            "inputs": [self.tensor(i) for i in data],
            "outputs": [self._reading.tensor(v) for v in self.node.outputs],
        }


class NotKnown(Exception):
    """The node is of a form that its reader does not know: it is read as an operator that nothing passes."""


class Reading:
    """The reading of one graph."""

    def __init__(self, graph: ir.Graph, opset: int) -> None:
        self.graph = graph
        self.constants = Constants(graph, opset)
        self.opset = opset
        self._tensors: dict[ir.Value, Tensor] = {}
        self._outer: set[ir.Value] = set()

    def tensor(self, value: ir.Value) -> Tensor:
        """Return the tensor of a value, one for each value."""
        if value not in self._tensors:
            pinned = ""
            if value.is_graph_output():
                pinned = "is an output of the network"
            elif value.producer() is None or value.graph is not self.graph:
                pinned = "is an input of the network"
            self._tensors[value] = Tensor(value, _dims(value), pinned=pinned)
        return self._tensors[value]

    def name(self, node: ir.Node) -> str:
        """Return what a person calls the node: the module's path, else the node's name."""
        return module_of(node) or node.name or (node.outputs[0].name if node.outputs else None) or node.op_type

    def net(self) -> Net:
        """Read every node that computes from the network's input."""
        ops: list[Op] = []
        taken: set[ir.Node] = set()
        for node in self.graph:
            if node in taken or all(self.constants.get(v) is not None for v in node.outputs):
                continue
            op = self._read(Node(node, self))
            _tell_shape(op)
            ops.append(op)
            add = _bias_of(op, self)
            if add is not None:
                taken.add(add)
        for order, op in enumerate(ops):
            op.order = order
            for y in op.outputs:
                y.producer = op
            for x in op.inputs:
                x.readers.append(op)
        for op in ops:
            _tell_usual(op)
        self._pin_what_subgraphs_read()
        return Net(ops, self._dtype(ops))

    def _read(self, node: Node) -> Op:
        reader = READERS.get(node.type) if node.node.domain in ("", "ai.onnx") else None
        if reader is not None and (self._in_floats(node.node) or reader is _shape):
            try:
                return reader(node)
            except NotKnown:
                pass
        return Op(**node.parts(node.computed()))

    def _in_floats(self, node: ir.Node) -> bool:
        return all(v.dtype is None or v.dtype in FLOATS for v in node.outputs[:1])

    def _pin_what_subgraphs_read(self) -> None:
        for node in self.graph.all_nodes():
            if node.graph is not self.graph:
                for v in node.inputs:
                    if v in self._tensors:
                        self._tensors[v].pinned = self._tensors[v].pinned or "is read inside an If, Loop or Scan"
        for sub in self.graph.subgraphs():
            for v in sub.outputs:
                if v in self._tensors and sub is not self.graph:
                    self._tensors[v].pinned = self._tensors[v].pinned or "is read inside an If, Loop or Scan"

    @staticmethod
    def _dtype(ops: list[Op]) -> np.dtype[Any]:
        for op in ops:
            for y in op.outputs:
                if y.value.dtype in FLOATS:
                    return y.value.dtype.numpy()
        return np.dtype(np.float32)


def _tell_usual(op: Op) -> None:
    """Give an affine behind another the usual size of what that one makes, unless its own statistics say less."""
    before = op.inputs[0].producer if op.inputs else None
    if isinstance(op, Scaling) and isinstance(before, Scaling):
        made = np.abs(before.params.scale) * before.params.usual + np.abs(before.params.shift)
        op.params = Scaled.like(op.params, np.minimum(made, op.params.usual) if op.is_batchnorm else made)


def _tell_shape(op: Op) -> None:
    """Give the output the shape that follows from the operator, where shape inference gave up."""
    if len(op.outputs) != 1 or op.outputs[0].shape is not None or not op.inputs:
        return
    (y,), x = op.outputs, op.inputs[0]
    if isinstance(op, (Scaling, Clamp, Sloped, Same, Activation)):
        y.shape = x.shape
    elif isinstance(op, Linear) and op.form in ("conv", "transposed"):
        groups, out, _, *taps = op.params.weight.shape
        batch = x.shape[0] if x.shape else f"{y.name}[0]"
        y.shape = (batch, groups * out, *(f"{y.name}[{i + 2}]" for i in range(len(taps))))
    elif isinstance(op, Pooling) and x.shape is not None and not op.drops_axes:
        y.shape = tuple(f"{y.name}[{i}]" if i in op.axes else d for i, d in enumerate(x.shape))
    elif isinstance(op, Sum) and len({z.shape for z in op.inputs}) == 1:
        y.shape = x.shape


def module_of(node: ir.Node) -> str:
    """Return the path of the module that a node came from, as its exporter noted it, or ""."""
    noted = node.metadata_props.get("normfold.module")
    if noted:
        return noted
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    names = [s for s in scopes.strip("[]").replace("'", "").split(", ") if s]
    if len(names) > 1:
        return names[-2]
    if node.op_type in ("BatchNormalization", "Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 1:
        owners = [v.name.rpartition(".")[0] for v in node.inputs[1:] if v is not None and v.name and "." in v.name]
        if owners and not owners[0].startswith("onnx::"):
            return owners[0]
    return ""


def _dims(value: ir.Value) -> tuple[Dim, ...] | None:
    """Return the shape of a value; a length that nothing names gets a name of its own, for it equals no other."""
    if value.shape is None:
        return None
    dims = [d if isinstance(d, int) else d.value for d in value.shape]
    return tuple(f"{value.name}[{i}]" if d is None else d for i, d in enumerate(dims))


# --- readers: each returns an operator, or raises NotKnown ------------------------------------------------------------


def _conv(n: Node) -> Op:
    weight, bias = n.constant(1), n.constant(2)
    if weight is None or (n.has(2) and bias is None) or n.computed() != [0]:
        raise NotKnown
    groups = n.attribute("group", 1)
    w = weight.astype(np.float64)
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    pads = n.attribute("pads", ()) or ()
    edges = any(pads) or n.attribute("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    b = np.zeros(weight.shape[0]) if bias is None else bias.astype(np.float64)
    return Linear(params=Weights(w, b), edges=edges, **n.parts())


def _conv_transpose(n: Node) -> Op:
    weight, bias = n.constant(1), n.constant(2)
    if weight is None or (n.has(2) and bias is None) or n.computed() != [0]:
        raise NotKnown
    groups = n.attribute("group", 1)
    w = weight.astype(np.float64)
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).swapaxes(1, 2)
    # Every output sees every tap only where one tap is all there is and nothing is skipped between inputs.
    single = all(k == 1 for k in weight.shape[2:]) and all(s == 1 for s in n.attribute("strides", (1,)))
    added = (
        any(n.attribute("pads", ()) or ())
        or any(n.attribute("output_padding", ()) or ())
        or n.attribute("output_shape") is not None
    )
    b = np.zeros(w.shape[0] * w.shape[1]) if bias is None else bias.astype(np.float64)
    return Linear(params=Weights(w, b), edges=not single or added, form="transposed", **n.parts())


def _gemm(n: Node) -> Op:
    weight, bias = n.constant(1), n.constant(2)
    if weight is None or (n.has(2) and bias is None) or n.computed() != [0] or n.attribute("transA", 0):
        raise NotKnown
    w = weight.astype(np.float64) * n.attribute("alpha", 1.0)
    w = w if n.attribute("transB", 0) else w.T
    if bias is None:
        b = np.zeros(w.shape[0])
    else:
        b = bias.astype(np.float64) * n.attribute("beta", 1.0)
        if b.ndim > 1 and b.shape[0] != 1:
            raise NotKnown
        b = np.broadcast_to(b.reshape(-1), (w.shape[0],))
    form = "out,in" if n.attribute("transB", 0) else "in,out"
    return Linear(params=Weights(w[None], b), form=form, **n.parts())


def _matmul(n: Node) -> Op:
    weight = n.constant(1)
    if weight is None or weight.ndim != 2 or n.computed() != [0] or n.rank() < 2:
        raise NotKnown
    w = weight.astype(np.float64)
    axis = n.rank() - 1
    return Linear(
        params=Weights(w.T[None], np.zeros(w.shape[1])), axis_in=axis, axis_out=axis, form="in,out", **n.parts()
    )


def _bias_of(op: Op, reading: Reading) -> ir.Node | None:
    """Join a MatMul with the Add of a constant behind it that is its bias."""
    if not isinstance(op, Linear) or op.node.op_type != "MatMul" or op.outputs[0].pinned:
        return None
    uses = list(op.outputs[0].value.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add" or uses[0].node.graph is not reading.graph:
        return None
    add = uses[0].node
    bias = reading.constants.get(add.inputs[1 - uses[0].idx])
    size = op.params.weight.shape[1]
    if bias is None or bias.shape[-1:] not in ((size,), (1,), ()) or any(d != 1 for d in bias.shape[:-1]):
        return None
    if bias.ndim > op.axis_out + 1:
        return None
    op.params = Weights(op.params.weight, np.broadcast_to(bias.astype(np.float64).reshape(-1), (size,)))
    op.outputs = [reading.tensor(add.outputs[0])]
    return add


def _batchnorm(n: Node) -> Op:
    constants = [n.constant(i) for i in range(1, 5)]
    if n.attribute("training_mode", 0) or any(c is None for c in constants) or not n.only_first_read():
        raise NotKnown
    gamma, beta, mean, var = (c.astype(np.float64) for c in constants if c is not None)
    scale, shift = batchnorm(gamma, beta, mean, var, n.attribute("epsilon", float(np.float32(1e-5))))
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))) or n.rank() < 2:
        raise NotKnown
    parts = n.parts()
    parts["outputs"] = parts["outputs"][:1]
    usual = Affine.along(1, n.rank(), np.abs(mean) + np.sqrt(var), 0.0).scale
    params = Scaled.like(Affine.along(1, n.rank(), scale, shift), usual)
    deviation = np.sqrt(var)
    live = gamma != 0
    apart = (np.abs(scale) * (np.abs(mean) + deviation))[live]
    ratio = apart / np.maximum(np.abs(scale) * deviation + np.abs(beta), 1e-300)[live]
    cancels = float(np.sqrt(np.mean(ratio**2))) if live.any() else 0.0
    return Scaling(params=params, target=True, is_batchnorm=True, cancels=cancels, **parts)


def _arithmetic(n: Node) -> Op:
    places = n.computed()
    if len(places) == 2 and len(n.node.inputs) == 2:
        if n.type in ("Add", "Sub"):
            return Sum(signs=(1, 1 if n.type == "Add" else -1), **n.parts((0, 1)))
        return Product(divides=n.type == "Div", **n.parts((0, 1)))
    if len(places) != 1:
        raise NotKnown
    (place,) = places
    rank = n.rank(place)
    constant = n.constant(1 - place)
    assert constant is not None
    if constant.ndim > rank or not np.all(np.isfinite(constant)):
        raise NotKnown
    c = constant.astype(np.float64).reshape((1,) * (rank - constant.ndim) + constant.shape)
    shape = n.tensor(place).shape
    assert shape is not None
    if any(size > 1 and shape[axis] != size for axis, size in enumerate(c.shape)):
        raise NotKnown  # the constant is the larger: the result is another shape
    if n.type == "Add":
        affine = Affine.of(1.0, c)
    elif n.type == "Sub":
        affine = Affine.of(1.0, -c) if place == 0 else Affine.of(-1.0, c)
    elif n.type == "Mul":
        affine = Affine.of(c, 0.0)
    elif place == 0 and np.all(c != 0):
        with np.errstate(over="ignore"):
            affine = Affine.of(1.0 / c, 0.0)
    else:
        raise NotKnown
    if not np.all(np.isfinite(affine.scale)):
        raise NotKnown
    full = Affine.of(
        np.broadcast_to(affine.scale, _at_least(affine.scale, rank)),
        np.broadcast_to(affine.shift, _at_least(affine.shift, rank)),
    )
    by_channel = sum(size > 1 for size in c.shape) == 1
    if full.is_identity and c.size == 1:
        return Same(**n.parts((place,)))
    return Scaling(params=Scaled.like(full, np.ones((1,) * rank)), target=by_channel, **n.parts((place,)))


def _at_least(part: NDArray[Any], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - part.ndim) + part.shape


def _sum(n: Node) -> Op:
    places = n.computed()
    if len(places) != len(n.node.inputs):
        raise NotKnown
    if len(places) == 1:
        return Same(**n.parts())
    return Sum(signs=(1,) * len(places), **n.parts(places))


def _relu(n: Node) -> Op:
    return Clamp(params=_bounds(n.rank(), 0.0, np.inf), **n.parts())


def _clip(n: Node) -> Op:
    lo, hi = n.attribute("min"), n.attribute("max")
    for index in (1, 2):
        if n.has(index):
            bound = n.constant(index)
            if bound is None:
                raise NotKnown
            lo, hi = (float(bound.reshape(())), hi) if index == 1 else (lo, float(bound.reshape(())))
    return Clamp(params=_bounds(n.rank(), -np.inf if lo is None else lo, np.inf if hi is None else hi), **n.parts())


def _max(n: Node) -> Op:
    places = n.computed()
    if len(n.node.inputs) != 2 or len(places) != 1:
        raise NotKnown
    (place,) = places
    bound = n.constant(1 - place)
    assert bound is not None
    rank, shape = n.rank(place), n.tensor(place).shape
    assert shape is not None
    if bound.ndim > rank or np.any(np.isnan(bound)):
        raise NotKnown
    c = bound.astype(np.float64).reshape((1,) * (rank - bound.ndim) + bound.shape)
    if any(size > 1 and shape[axis] != size for axis, size in enumerate(c.shape)):
        raise NotKnown
    return Clamp(params=_bounds(rank, c, np.inf) if n.type == "Max" else _bounds(rank, -np.inf, c), **n.parts((place,)))


def _bounds(rank: int, lo: Any, hi: Any) -> Bounds:
    a, b = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    a = np.minimum(a, b)  # where they cross, every entry becomes the upper one
    return Bounds(a.reshape((1,) * (rank - a.ndim) + a.shape), b.reshape((1,) * (rank - b.ndim) + b.shape))


def _leaky_relu(n: Node) -> Op:
    return Sloped(params=np.full((1,) * n.rank(), float(n.attribute("alpha", np.float32(0.01)))), **n.parts())


def _prelu(n: Node) -> Op:
    slope = n.constant(1)
    if slope is None or slope.ndim > n.rank() or n.computed() != [0]:
        raise NotKnown
    return Sloped(params=slope.astype(np.float64).reshape((1,) * (n.rank() - slope.ndim) + slope.shape), **n.parts())


def _cast(n: Node) -> Op:
    if n.tensor(0).value.dtype != n.tensor_out().value.dtype or n.tensor(0).value.dtype is None:
        raise NotKnown
    return Same(**n.parts())


def _same(n: Node) -> Op:
    if n.type == "Dropout":
        training = n.constant(2) if n.has(2) else np.array(False)
        if training is None or training.any() or not n.only_first_read():
            raise NotKnown
    parts = n.parts()
    parts["outputs"] = parts["outputs"][:1]
    return Same(**parts)


def _pool(n: Node) -> Op:
    rank = n.rank()
    padded = any(n.attribute("pads", ()) or ()) or n.attribute("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    counts = (
        n.type == "AveragePool"
        and bool(n.attribute("count_include_pad", 0))
        and (padded or bool(n.attribute("ceil_mode", 0)))
    )
    if not n.only_first_read():
        raise NotKnown
    parts = n.parts()
    parts["outputs"] = parts["outputs"][:1]
    return Pooling(
        axes=tuple(range(2, rank)), monotone=n.type in ("MaxPool", "GlobalMaxPool"), counts_zeros=counts, **parts
    )


def _reduce(n: Node) -> Op:
    rank = n.rank()
    axes = n.axes(1)
    if not axes:
        if n.attribute("noop_with_empty_axes", 0):
            return Same(**n.parts())
        axes = tuple(range(rank))
    axes = tuple(sorted(a % rank for a in axes))
    if n.type == "ReduceMin":
        raise NotKnown
    return Pooling(axes=axes, monotone=n.type == "ReduceMax", drops_axes=not n.attribute("keepdims", 1), **n.parts())


def _resize(n: Node) -> Op:
    x, y = n.tensor(0), n.tensor_out()
    mode = n.attribute("mode", "nearest")
    scales = n.constant(1 if n.type == "Upsample" else 2)
    if mode not in ("nearest", "linear") or n.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise NotKnown
    axes = [a % n.rank() for a in n.attribute("axes", range(n.rank()))]
    kept = scales is not None and len(axes) == scales.size
    if scales is not None and kept:
        kept = all(s == 1 for a, s in zip(axes, scales, strict=True) if a < 2)
    kept = kept or (x.shape is not None and y.shape is not None and x.shape[:2] == y.shape[:2])
    if not kept:
        raise NotKnown
    return Pooling(axes=tuple(range(2, n.rank())), **n.parts())


def _expand(n: Node) -> Op:
    x, y = n.tensor(0), n.tensor_out()
    if n.computed()[:1] != [0] or x.shape is None or y.shape is None or len(x.shape) != len(y.shape):
        raise NotKnown
    # An axis of length 1 is repeated; every other keeps its length, by the operator's definition.
    repeated = tuple(a for a, d in enumerate(x.shape) if d == 1 and y.shape[a] != 1)
    if any(d != y.shape[a] for a, d in enumerate(x.shape) if a not in repeated):
        raise NotKnown
    return Pooling(axes=repeated, **n.parts())


def _shape(n: Node) -> Op:
    return Shape(**n.parts())


def _transpose(n: Node) -> Op:
    axes = n.attribute("perm") or tuple(reversed(range(n.rank())))
    return Transpose(axes=tuple(int(a) for a in axes), **n.parts())


def _reshape(n: Node) -> Op:
    target = None
    if n.type == "Reshape":
        shape = n.constant(1)
        if shape is not None and not n.attribute("allowzero", 0):
            target = tuple(int(d) for d in shape)
    x, y = n.tensor(0), n.tensor_out()
    if y.shape is None or not all(isinstance(d, int) for d in y.shape):
        y.shape = _target_shape(n, x, target) or y.shape
    if x.shape is not None and y.shape is not None:
        y.shape = _same_dynamic(x.shape, y.shape)
    return Reshape(target=target, **n.parts())


def _same_dynamic(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Return the shape behind a reshape with its one dynamic length called as before, where the two must be equal."""
    old, new = ([d for d in dims if not isinstance(d, int)] for dims in (before, after))
    if len(old) != 1 or len(new) != 1:
        return after
    products = [math.prod(d for d in dims if isinstance(d, int)) for dims in (before, after)]
    return tuple(d if isinstance(d, int) else old[0] for d in after) if products[0] == products[1] else after


def _target_shape(n: Node, x: Tensor, target: tuple[int, ...] | None) -> tuple[Dim, ...] | None:
    """Return the shape of a reshape's output as its input and target tell it, where shape inference gave up."""
    if target is None or x.shape is None:
        return None
    dims: list[Dim] = [x.shape[i] if d == 0 and i < len(x.shape) else d for i, d in enumerate(target)]
    if -1 in dims:
        rest_in, rest_out = list(x.shape), [d for d in dims if d != -1]
        for d in list(rest_out):
            if not isinstance(d, int) and d in rest_in:
                rest_in.remove(d)
                rest_out.remove(d)
        if all(isinstance(d, int) for d in rest_in) and all(isinstance(d, int) for d in rest_out):
            held = math.prod(d for d in rest_out if isinstance(d, int))
            dims[dims.index(-1)] = math.prod(d for d in rest_in if isinstance(d, int)) // max(held, 1)
        else:
            names = [d for d in rest_in if not isinstance(d, int)]
            if len(names) != 1 or names[0] is None:
                return None
            inner = math.prod(d for d in rest_in if isinstance(d, int))
            held = math.prod(d for d in rest_out if isinstance(d, int))
            if inner != held or not all(isinstance(d, int) for d in rest_out):
                return None
            dims[dims.index(-1)] = names[0]
    return tuple(dims)


def _concat(n: Node) -> Op:
    if len(n.computed()) != len(n.node.inputs):
        raise NotKnown
    rank = n.rank()
    return Concat(axis=n.attribute("axis", 1) % rank, **n.parts(range(len(n.node.inputs))))


def _split(n: Node) -> Op:
    x = n.tensor(0)
    axis = n.attribute("axis", 0) % n.rank()
    sizes = n.attribute("split")
    if sizes is None and n.has(1):
        given = n.constant(1)
        if given is None:
            raise NotKnown
        sizes = given.tolist()
    if sizes is None:
        total, parts = x.shape[axis] if x.shape else None, len(n.node.outputs)
        if not isinstance(total, int):
            raise NotKnown
        each = -(-total // parts)
        sizes = [each] * (parts - 1) + [total - each * (parts - 1)]
    starts = np.cumsum([0, *sizes])
    picks = tuple(np.arange(a, b) for a, b in itertools.pairwise(starts))
    return Select(axis=axis, picks=picks, **n.parts())


def _slice(n: Node) -> Op:
    rank = n.rank()
    if n.attribute("starts") is not None:
        starts, ends, axes, steps = (*(n.attribute(k) for k in ("starts", "ends", "axes")), None)
    else:
        starts, ends = n.constant(1), n.constant(2)
        axes, steps = n.constant(3), n.constant(4)
        if n.has(3) and axes is None:
            raise NotKnown
    if axes is None:
        if starts is None:
            raise NotKnown
        axes = range(len(starts))
    axes = tuple(int(a) % rank for a in axes)
    shape = n.tensor(0).shape
    assert shape is not None
    if (
        axes == (1,)
        and isinstance(shape[1], int)
        and starts is not None
        and ends is not None
        and not (n.has(4) and steps is None)
    ):
        step = 1 if steps is None else int(steps[0])
        pick = np.arange(shape[1])[slice(int(starts[0]), int(ends[0]) if abs(int(ends[0])) < 2**31 - 1 else None, step)]
        return Select(axis=1, picks=(pick,), **n.parts())
    if 1 in axes and rank > 2:
        raise NotKnown
    y = n.tensor_out()
    told = y.shape if y.shape is not None and len(y.shape) == rank else (None,) * rank
    # Where its ends are computed, shape inference names no length of the output at all.
    y.shape = tuple((f"{y.name}[{a}]" if d is None else d) if a in axes else shape[a] for a, d in enumerate(told))
    return Select(axis=axes[0], picks=(None,), positions=axes, **n.parts())


def _gather(n: Node) -> Op:
    table, index = n.constant(0), n.constant(1)
    if table is not None and index is None and table.ndim == 2 and n.attribute("axis", 0) == 0:
        return Embedding(params=table.astype(np.float64), **n.parts((1,)))
    if table is not None:
        raise NotKnown
    axis, shape = n.attribute("axis", 0) % n.rank(), n.tensor(0).shape
    assert shape is not None
    size = shape[axis]
    if index is not None and index.ndim == 1 and isinstance(size, int):
        return Select(axis=axis, picks=(index.astype(np.int64) % size,), **n.parts())
    if (index.ndim if index is not None else n.rank(1)) == 1:
        # Which are taken is not known: as from a mean, what is the same for all along the axis passes.
        return Pooling(axes=(axis,), **n.parts())
    raise NotKnown


def _pad(n: Node) -> Op:
    rank = n.rank()
    pads = n.attribute("pads")
    if pads is None:
        given, axes = n.integers(1), n.constant(3)
        if given is None and not n.has(3) and n.channels_kept():
            given = [
                0,
                0,
                *[None] * (rank - 2),
            ] * 2  # the batch may be padded too: zeros let a scale pass there as well
        if given is None or (n.has(3) and axes is None):
            raise NotKnown
        half = len(given) // 2
        places = range(half) if axes is None else [int(a) % rank for a in axes]
        before, behind = [0] * rank, [0] * rank
        for k, a in enumerate(places):
            # A computed length may be any; that it may be other than 0 is what counts.
            before[a], behind[a] = (1 if v is None else v for v in (given[k], given[half + k]))
        if rank > 1 and any(given[k] is None or given[half + k] is None for k, a in enumerate(places) if a < 2):
            raise NotKnown
    else:
        before, behind = list(pads[:rank]), list(pads[rank:])
    mode = n.attribute("mode", "constant")
    value = n.attribute("value", 0.0)
    if n.has(2):
        filled = n.constant(2)
        if filled is None:
            raise NotKnown
        value = float(filled.reshape(()))
    if mode == "constant" and value != 0 and (any(p > 0 for p in before) or any(p > 0 for p in behind)):
        raise NotKnown
    if before[0] or behind[0] or (rank > 1 and (before[1] < 0 or behind[1] < 0)):
        raise NotKnown
    return Pad(before=tuple(before), behind=tuple(behind), zeros=mode == "constant", **n.parts())


def _recurrent(n: Node) -> Op:
    weight, recurrence, bias = n.constant(1), n.constant(2), n.constant(3)
    if weight is None or recurrence is None or (n.has(3) and bias is None):
        raise NotKnown
    gates = weight.shape[1]
    both = np.zeros((weight.shape[0], 2 * gates)) if bias is None else bias.astype(np.float64)
    params = Gates(weight.astype(np.float64), both[:, :gates], both[:, gates:])
    return Recurrent(params=params, **n.parts(n.computed()))


def _at(function: Callable[[float], float]) -> Callable[[Node], Op]:
    def read(n: Node) -> Op:
        if n.computed() != [0]:
            raise NotKnown
        return Activation(function=function, **n.parts())

    return read


def _elu(n: Node) -> Op:
    alpha = n.attribute("alpha", 1.0)
    return Activation(function=lambda v: v if v > 0 else alpha * math.expm1(v), **n.parts())


def _gelu(n: Node) -> Op:
    if n.attribute("approximate", "none") != "none":
        raise NotKnown
    return Activation(function=lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))), **n.parts())


def _sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


#: Operator -> its reader. An operator that is not here lets nothing pass.
READERS: dict[str, Callable[[Node], Op]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Gather": _gather,
    "BatchNormalization": _batchnorm,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Sum": _sum,
    "Relu": _relu,
    "Clip": _clip,
    "Max": _max,
    "Min": _max,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "CastLike": _cast,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalMaxPool": _pool,
    "GlobalAveragePool": _pool,
    "ReduceMean": _reduce,
    "ReduceMax": _reduce,
    "Resize": _resize,
    "Upsample": _resize,
    "Expand": _expand,
    "Shape": _shape,
    "Size": _shape,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Elu": _elu,
    "Gelu": _gelu,
    "Sigmoid": _at(_sigmoid),
    "Tanh": _at(math.tanh),
    "Softplus": _at(lambda v: math.log1p(math.exp(v))),
    "Erf": _at(math.erf),
    "Exp": _at(math.exp),
}
