"""From a graph of PyTorch calls to the network that folding works on."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import onnx_ir as ir
from torch import fx

from normfold.export.fold.modules.calls import called
from normfold.export.fold.modules.shapes import Kind, Shapes
from normfold.export.fold.modules.skeleton import OPSET, Call, Skeleton
from normfold.export.fold.net import Net
from normfold.export.fold.reading import Reading
from normfold.export.graphs.constants import Constants

#: Properties of a tensor that do not depend on its numbers or lengths.
_HARMLESS = ("dtype", "device", "ndim", "is_cuda", "layout", "requires_grad", "dim", "ndimension", "get_device")


def read(graph_module: fx.GraphModule, shapes: Shapes) -> tuple[Net, Skeleton]:
    """Return the network, and the skeleton that knows the call that each operator came from."""
    skeleton = Skeleton(shapes)
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []
    for node in graph_module.graph.nodes:
        if node in shapes.constants or skeleton.is_alias(node):
            continue
        if node.op == "placeholder":
            inputs.append(skeleton.value(node))
        elif node.op == "output":
            outputs += [skeleton.value(n) for n in skeleton.computed(node)]
        elif shapes.results.get(node) is None:
            _read_number(node, skeleton)
        else:
            skeleton.read(*called(node, graph_module))
    graph = ir.Graph(inputs, outputs, nodes=skeleton.nodes, opset_imports={"": OPSET}, name="calls")
    # The operators lack attributes, so they would compute other constants than the calls; those are known already.
    return Reading(graph, OPSET, Constants(graph, OPSET, computes=False)).net(), skeleton


def _read_number(node: fx.Node, skeleton: Skeleton) -> None:
    """Read a call that returns no tensor: the numbers or lengths that it reads must not change."""
    if _name(node) in _HARMLESS:
        return
    for tensor in skeleton.computed(node):
        kind = skeleton.shapes.results[tensor]
        if not isinstance(kind, Kind) or _name(node) not in ("size", "shape"):
            skeleton.read(Call(node, {}), None)
            return
        # A free length is never written into the folded module, and its axis never gets a channel, so reading it is
        # safe.
        if any(isinstance(kind.dims[a], int) for a in _axes(node, len(kind.dims))):
            skeleton.reads_lengths(Call(node, {}), tensor)


def _axes(node: fx.Node, rank: int) -> Iterator[int]:
    """Yield the axes whose lengths are read through a ``size`` or ``shape``."""
    given = node.args[1] if _name(node) == "size" and len(node.args) > 1 else node.kwargs.get("dim")
    if isinstance(given, int):
        yield given
        return
    for user in node.users:
        if user.target is not operator.getitem or not isinstance(user.args[1], int):
            yield from range(rank)
            return
        yield user.args[1]


def _name(node: fx.Node) -> str:
    if node.target is getattr:
        return str(node.args[1])
    return node.target if isinstance(node.target, str) else ""
