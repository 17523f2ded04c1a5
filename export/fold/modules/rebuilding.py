"""From the folded network back to a graph of PyTorch calls: changed operators are written as layers of ``torch.nn``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from normfold.export.errors import FoldError
from normfold.export.fold.affine import Affine, Array
from normfold.export.fold.engine.driver import Folding
from normfold.export.fold.engine.ones import Ones
from normfold.export.fold.modules.by_channel import AffineByChannel, ChannelOfOnes, ClampByChannel, SlopeByChannel
from normfold.export.fold.modules.shapes import Kind
from normfold.export.fold.modules.skeleton import Call, Skeleton
from normfold.export.fold.net import Op
from normfold.export.fold.ops.activations import Sloped
from normfold.export.fold.ops.clamps import Clamp, ClampForm
from normfold.export.fold.ops.linear import Linear
from normfold.export.fold.ops.moving import Reshape
from normfold.export.fold.ops.products import MatrixProduct
from normfold.export.fold.ops.recurrent import Embedding, Recurrent
from normfold.export.fold.ops.scaling import Scaling
from normfold.export.fold.ops.selecting import Select
from normfold.export.fold.ops.tables import Table
from normfold.export.fold.ops.weights import WeightForm

_CONVS: dict[tuple[WeightForm, int], type[nn.Module]] = {
    (WeightForm.CONV, 1): nn.Conv1d,
    (WeightForm.CONV, 2): nn.Conv2d,
    (WeightForm.CONV, 3): nn.Conv3d,
    (WeightForm.TRANSPOSED, 1): nn.ConvTranspose1d,
    (WeightForm.TRANSPOSED, 2): nn.ConvTranspose2d,
    (WeightForm.TRANSPOSED, 3): nn.ConvTranspose3d,
}


def rebuilt(
    graph_module: fx.GraphModule, skeleton: Skeleton, folding: Folding, before: Mapping[Op, Any]
) -> fx.GraphModule:
    """Change ``graph_module`` into the folded network; ``before`` holds the operators' params before the fold."""
    rebuilding = Rebuilding(graph_module, skeleton)
    for op in folding.net.ops:
        if op.changed and (op not in before or before[op] is not op.params):
            rebuilding.write(op)
    for op in folding.removed:
        rebuilding.replace(op, rebuilding.node_of(op.inputs[0].value))
    graph = graph_module.graph
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(graph_module, graph, class_name=type(graph_module).__name__)


class Rebuilding:
    """Writes a folded network into one graph of calls."""

    def __init__(self, graph_module: fx.GraphModule, skeleton: Skeleton) -> None:
        self.module = graph_module
        self.graph = graph_module.graph
        self.skeleton = skeleton
        #: The new node in place of each replaced call.
        self._now: dict[fx.Node, fx.Node] = {}

    def write(self, op: Op) -> None:
        """Write one operator's params into the graph."""
        writer = _WRITERS.get(type(op))
        if writer is not None:
            writer(self, op)
        elif op.params is not None:
            raise FoldError(
                f"{op} was changed by the fold, and no layer of PyTorch is known for it; please report this."
            )

    def call(self, op: Op) -> Call:
        """Return the call that an operator came from."""
        return self.skeleton.calls[op.node]

    def node_of(self, value: Any) -> fx.Node:
        """Return the node that computes a value now."""
        node = self.skeleton.owners[value]
        while node in self._now:
            node = self._now[node]
        return node

    def replace(self, op: Op, new: fx.Node) -> None:
        """Make everything that reads an operator's output read another node."""
        old = self.node_of(op.outputs[0].value)
        if old is not new:
            old.replace_all_uses_with(new)
            self._now[old] = new

    def put(self, op: Op, layer: nn.Module) -> None:
        """Replace an operator's call by a layer, which reads the call's first argument."""
        node = self.call(op).node
        source = node.args[0] if node.args else node.kwargs["input"]
        self.replace(op, self.insert(node, layer, source))

    def insert(self, at: fx.Node, layer: nn.Module, source: Any) -> fx.Node:
        """Insert a call of a layer before a node, under the node's path if that is free, and return the call."""
        path = self.path(at)
        self.module.add_submodule(path, layer.train(False))
        with self.graph.inserting_before(at):
            new = self.graph.call_module(path, (source,))
        new.meta.update({k: v for k, v in at.meta.items() if k in ("stack_trace", "nn_module_stack")})
        return new

    def path(self, node: fx.Node) -> str:
        """Return the path of what takes a node's place: its own if that is free."""
        others = {str(n.target) for n in self.graph.nodes if n is not node and n.op in ("call_module", "get_attr")}
        stem = str(node.target) if node.op == "call_module" else f"folded_{node.name}"
        path, count = stem, 0
        taken = {name for name, _ in self.module.named_modules()} - ({stem} if node.op == "call_module" else set())
        while path in others or path in taken:
            count += 1
            path = f"{stem}_{count}"
        return path

    def tensor(self, op: Op, array: Array) -> torch.Tensor:
        """Return an array rounded once to the type of the operator's tensors, on their device."""
        kind = self.skeleton.shapes.results[self.call(op).node]
        if isinstance(kind, tuple):
            kind = next(k for k in kind if isinstance(k, Kind))
        assert isinstance(kind, Kind)
        # A copy with memory of its own, because an array may be a view of a larger one.
        return torch.from_numpy(np.array(array, np.float64)).to(kind.dtype).to(kind.device)

    def parameter(self, op: Op, array: Array) -> nn.Parameter:
        """Return the same as a parameter."""
        given = self.call(op).get("weight")
        trained = given.requires_grad if isinstance(given, torch.Tensor) else True
        return nn.Parameter(self.tensor(op, array), requires_grad=trained)


def _write_linear(r: Rebuilding, op: Linear) -> None:
    weight, bias, offset, call = op.params.weight, op.params.bias, op.params.offset, r.call(op)
    groups, out, inner, *taps = weight.shape
    has_bias = offset is None and (call.get("bias") is not None or bool(np.any(bias != 0)))
    if op.form.has_taps:
        names = ("stride", "padding", "dilation", "padding_mode", "output_padding")
        given = {n: call.get(n) for n in names if call.get(n) is not None}
        made = _CONVS[op.form, len(taps)]
        with torch.device("meta"):
            layer = made(groups * inner, groups * out, tuple(taps), groups=groups, bias=has_bias, **given)
        array = op.form.of(weight)
    else:
        layer = nn.Linear(inner, out, bias=has_bias, device="meta")
        array = weight[0]
    layer.weight = r.parameter(op, array)
    if has_bias:
        layer.bias = r.parameter(op, bias)
    r.put(op, layer if offset is None else nn.Sequential(layer, AffineByChannel(None, r.tensor(op, op.added))))


def _write_embedding(r: Rebuilding, op: Embedding) -> None:
    rows, columns = op.params.shape
    layer = nn.Embedding(rows, columns, device="meta")
    layer.weight = r.parameter(op, op.params)
    r.put(op, layer)


def _write_table(r: Rebuilding, op: Table) -> None:
    """Give the call that reads a constant a new one."""
    (y,) = op.outputs
    old, node = r.skeleton.owners[y.value], r.call(op).node
    path = r.path(old)
    trained = _is_trained(old, r.module)
    r.module.register_parameter(path, nn.Parameter(r.tensor(op, op.params), requires_grad=trained))
    with r.graph.inserting_before(node):
        node.replace_input_with(old, r.graph.get_attr(path))


def _is_trained(constant: fx.Node, module: nn.Module) -> bool:
    """Whether a constant is, or is computed from, a parameter that is trained."""
    if constant.op == "get_attr":
        path, _, name = str(constant.target).rpartition(".")
        return bool(getattr(module.get_submodule(path), name).requires_grad)
    return any(_is_trained(n, module) for n in constant.all_input_nodes)


def _write_recurrent(r: Rebuilding, op: Recurrent) -> None:
    old = r.call(op).layer
    assert isinstance(old, nn.RNNBase)
    names = ("hidden_size", "num_layers", "batch_first", "dropout", "bidirectional")
    given = {n: getattr(old, n) for n in names}
    if old.mode == "LSTM":
        given["proj_size"] = old.proj_size
    if isinstance(old, nn.RNN):
        given["nonlinearity"] = old.nonlinearity
    # Not the type of the old one: a class of the user's own may take other arguments.
    kinds: dict[str, type[nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU}
    with torch.random.fork_rng():
        layer = kinds.get(old.mode, nn.RNN)(input_size=op.params.weight.shape[2], bias=True, **given)
    layer = layer.to(next(old.parameters()))
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            held = getattr(old, name, None)
            if held is None:
                parameter.zero_()
            elif held.shape == parameter.shape:
                parameter.copy_(held)
        for k, end in enumerate(["", "_reverse"] if old.bidirectional else [""]):
            getattr(layer, f"weight_ih_l0{end}").copy_(torch.from_numpy(np.array(op.params.weight[k])))
            getattr(layer, f"bias_ih_l0{end}").copy_(torch.from_numpy(np.array(op.params.bias[k])))
    node = r.call(op).node
    new = r.insert(node, layer, None)
    new.args, new.kwargs = node.args, node.kwargs
    r.replace(op, new)


def _write_scaling(r: Rebuilding, op: Scaling) -> None:
    scale, shift = op.params.scale, op.params.shift
    if op.params.is_identity:
        r.replace(op, r.node_of(op.inputs[0].value))
        return
    layer = AffineByChannel(
        r.tensor(op, scale) if np.any(scale != 1) else None, r.tensor(op, shift) if op.params.shifts else None
    )
    source = r.node_of(op.inputs[0].value)
    r.replace(op, r.insert(r.call(op).node, layer, source))


def _write_clamp(r: Rebuilding, op: Clamp) -> None:
    lo, hi, form = op.params.lo, op.params.hi, op.params.form
    if form is ClampForm.IDENTITY:
        r.replace(op, r.node_of(op.inputs[0].value))
    elif form is ClampForm.RELU:
        r.put(op, nn.ReLU())
    else:
        r.put(
            op,
            ClampByChannel(
                r.tensor(op, lo) if np.any(lo != -np.inf) else None, r.tensor(op, hi) if np.any(hi != np.inf) else None
            ),
        )


def _write_sloped(r: Rebuilding, op: Sloped) -> None:
    slope = op.params
    if slope.size == 1:
        r.put(op, nn.LeakyReLU(float(slope.reshape(()))))
    elif Affine.of(slope, 0.0).channels(1, slope.size) is not None:
        layer = nn.PReLU(slope.size, device="meta")
        layer.weight = r.parameter(op, slope.reshape(-1))
        r.put(op, layer)
    else:
        r.put(op, SlopeByChannel(r.tensor(op, slope)))


def _write_select(r: Rebuilding, op: Select) -> None:
    node = r.call(op).node
    if op.params is None:
        return
    source = node.args[0] if node.args else node.kwargs["tensor"]
    node.op, node.target = "call_function", torch.split
    node.args, node.kwargs = (source, [int(n) for n in op.params], op.axis), {}


def _write_reshape(r: Rebuilding, op: Reshape) -> None:
    if op.params is None:
        return
    call = r.call(op)
    node = call.node
    given = call.get("shape", call.rest)
    given = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
    written = op.target or op.params
    target = [int(new) if new != old else kept for new, old, kept in zip(op.params, written, given, strict=True)]
    node.args, node.kwargs = (node.args[0], tuple(target)), {}


def _write_ones(r: Rebuilding, op: Ones) -> None:
    (reader,) = op.outputs[0].readers
    node = r.call(reader).node
    source = node.args[0] if node.args else node.kwargs["input"]
    path = f"carrier_{node.name}"
    r.module.add_submodule(path, ChannelOfOnes())
    with r.graph.inserting_before(node):
        new = r.graph.call_module(path, (source,))
    if node.args:
        node.args = (new, *node.args[1:])
    else:
        node.kwargs = {**node.kwargs, "input": new}


_WRITERS: dict[type[Op], Callable[[Rebuilding, Any], None]] = {
    Linear: _write_linear,
    MatrixProduct: _write_linear,
    Embedding: _write_embedding,
    Recurrent: _write_recurrent,
    Table: _write_table,
    Scaling: _write_scaling,
    Clamp: _write_clamp,
    Sloped: _write_sloped,
    Select: _write_select,
    Reshape: _write_reshape,
    Ones: _write_ones,
}
