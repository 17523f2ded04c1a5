"""This room folds an ``nn.Module``: it reads the calls with torch.fx, and writes the folded network back as calls.

The engine that folds is the same as for ONNX; no rule of folding may come in, and nothing that ONNX graphs need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from normfold.export.fold.engine.driver import Folding
from normfold.export.fold.engine.prune import prune
from normfold.export.fold.modules.calls import called, is_batchnorm
from normfold.export.fold.modules.examples import example_for
from normfold.export.fold.modules.reading import read
from normfold.export.fold.modules.rebuilding import rebuilt
from normfold.export.fold.modules.shapes import shapes
from normfold.export.fold.modules.skeleton import Skeleton, constant_calls
from normfold.export.fold.modules.tracer import decided
from normfold.export.fold.modules.tracing import (
    plain_copy,
    refuse_other_numbers,
    refuse_state,
    refuse_uninitialised,
    traced,
)
from normfold.export.fold.net import Net
from normfold.export.fold.ops.scaling import scalings, targets
from normfold.export.fold.report import Fold, FoldReport, kept

__all__ = ["fold_module"]


def fold_module(module: nn.Module, *example_inputs: Any, fold_all: bool = False) -> tuple[fx.GraphModule, FoldReport]:
    """Return a network in eval mode that computes the same without its BatchNorms, and the report of each.

    The given network is left as it is. Weights are computed in float64 and rounded once to their own type. The result
    is a ``torch.fx.GraphModule`` of plain layers under their own names, which saves, loads, moves and exports like any
    other.

    example_inputs: the tensors that the network is called with, of any lengths that it takes. Lengths stay dynamic
    where the network also takes others. Without them the inputs are found from the first layer.
    fold_all: whether affines go too whose removal costs more time than it saves.

    >>> from torch import nn
    >>> from normfold.export.fold import fold_module
    >>> network = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 3)).eval()
    >>> folded, report = fold_module(network)
    >>> report.affines_before, report.affines_after
    (1, 0)

    Raises:
        FoldError: torch.fx cannot trace the network, or the network does not take the example, or it changes tensors in
            place, or its answer depends on earlier calls.
    """
    refuse_uninitialised(module)
    network = plain_copy(module)
    inputs = example_inputs or example_for(network)
    refuse_state(network, inputs)
    graph_module = traced(network, inputs)
    refuse_other_numbers(network, graph_module, inputs)
    trained = type(network).__name__ if module.training else ""
    del network  # as large as the given one
    found = shapes(graph_module, inputs, constant_calls(graph_module.graph))
    batchnorms, nodes, parameters = _counts(graph_module)
    net, skeleton = read(graph_module, found)
    before = {op: op.params for op in net.ops}
    affines = len(targets(net.ops))
    unread = _without_statistics(graph_module, net, skeleton)
    folding = Folding(net, fold_all)
    folding.run()
    removed = prune(net)
    folded = rebuilt(graph_module, skeleton, folding, before)
    after = _counts(folded)
    return folded, FoldReport(
        folds=(*folding.folds, *unread),
        batchnorms_before=batchnorms,
        batchnorms_after=after[0],
        affines_before=affines + len(unread),
        affines_after=len(targets(net.ops)) + len(unread),
        nodes_before=nodes,
        nodes_after=after[1],
        parameters_before=parameters,
        parameters_after=after[2],
        carriers=folding.carriers,
        channels_removed=removed,
        sums_removed=folding.sums,
        notes=(f"{trained} was in training mode; the folded copy is in eval mode",) if trained else (),
        **kept((*folding.folds, *unread)),
    )


def _without_statistics(graph_module: fx.GraphModule, net: Net, skeleton: Skeleton) -> tuple[Fold, ...]:
    """Return the reports of the BatchNorms that no rule reads."""
    known = {skeleton.calls[op.node].node for op in scalings(net.ops)}
    return tuple(
        Fold(
            str(node.target) if node.op == "call_module" else node.name,
            "BatchNorm",
            False,
            "",
            (_why_unread(node, graph_module),),
        )
        for node in graph_module.graph.nodes
        if is_batchnorm(node, graph_module) and node not in known
    )


def _why_unread(node: fx.Node, graph_module: fx.GraphModule) -> str:
    layer = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if layer is None or layer.running_mean is None or layer.training:
        return "it normalises each batch with that batch's own statistics, which no weights can hold"
    if called(node, graph_module)[1] is None:
        return "its call computes more than a BatchNorm: it has a hook, or a forward() of its own"
    return "its parameters are not finite"


def _counts(graph_module: fx.GraphModule) -> tuple[int, int, int]:
    """Return the numbers of BatchNorms, of calls, and of floating-point entries in parameters and buffers."""
    nodes = [n for n in graph_module.graph.nodes if n.op.startswith("call_") and n.target is not decided]
    held = {id(t): t for t in graph_module.state_dict(keep_vars=True).values() if isinstance(t, torch.Tensor)}
    return (
        sum(is_batchnorm(n, graph_module) for n in nodes),
        len(nodes),
        sum(t.numel() for t in held.values() if t.is_floating_point()),
    )
