"""This room folds every BatchNorm and per-channel affine of a graph into the weights around it, exactly.

It works on one network at a time; nothing may come in that exports, measures, proves or publishes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from normfold.export.errors import FoldError
from normfold.export.fold.engine.driver import Folding, write
from normfold.export.fold.engine.prune import prune
from normfold.export.fold.net import Op
from normfold.export.fold.ops.scaling import targets
from normfold.export.fold.reading import Reading
from normfold.export.fold.reading.names import module_of
from normfold.export.fold.report import Fold, FoldReport, kept
from normfold.export.fold.rewrites.branches import take_branches
from normfold.export.fold.rewrites.padding import join_padding
from normfold.export.fold.rewrites.sequences import split_plainly
from normfold.export.fold.rewrites.taps import cut_taps
from normfold.export.fold.rewrites.thinning import thin
from normfold.export.graphs.completing import densified
from normfold.export.graphs.names import share_names
from normfold.export.graphs.node import normalises_by_batch
from normfold.export.graphs.onnx_file import read_onnx
from normfold.export.graphs.shapes import infer_shapes

if TYPE_CHECKING:
    from torch import fx, nn

__all__ = ["Fold", "FoldReport", "fold", "fold_module"]

#: The oldest opset of a model that is folded.
OLDEST_OPSET = 9


@overload
def fold(model: ir.Model, *, fold_all: bool = ...) -> FoldReport: ...
@overload
def fold(model: onnx.ModelProto | str | Path, *, fold_all: bool = ...) -> tuple[onnx.ModelProto, FoldReport]: ...
@overload
def fold(model: nn.Module, example_inputs: Any = ..., *, fold_all: bool = ...) -> tuple[fx.GraphModule, FoldReport]: ...
def fold(
    model: ir.Model | onnx.ModelProto | str | Path | nn.Module, example_inputs: Any = None, *, fold_all: bool = False
) -> FoldReport | tuple[onnx.ModelProto | fx.GraphModule, FoldReport]:
    """Fold every BatchNorm and per-channel affine that can go exactly, and report each.

    An ``onnx_ir.Model`` is folded in place, and the report is returned. Everything else is left as it is, and a folded
    copy is returned with the report: an ``onnx.ModelProto`` for a ModelProto or for the path of an ONNX file, a network
    in eval mode for a PyTorch network (:func:`fold_module`). ``example_inputs`` is the tensor, or the tuple of tensors,
    that a PyTorch network is called with. The result computes the same function: float32 weights are computed in
    float64 and rounded once. ``normfold fold`` also proves that.

    An affine whose removal costs more time than it saves in onnxruntime on a CPU stays. With ``fold_all`` it goes too,
    for quantisers and other runtimes: then all go that mathematics allows.

    Raises:
        TypeError: the model is none of these.
        SourceError: the file is not there or not an ONNX file that can be folded.
        FoldError: torch.fx cannot trace the PyTorch network, or the network does not take the example; or the ONNX
            model is written in an opset before 9 or has a cycle.
    """
    if isinstance(model, (onnx.ModelProto, str, Path)):
        if example_inputs is not None:
            raise TypeError("fold: an ONNX model needs no example inputs")
        if isinstance(model, onnx.ModelProto):
            graph = ir.from_proto(densified(model, model.graph.name))
            if graph.functions:
                passes.InlinePass()(graph)
        else:
            graph = read_onnx(Path(model)).model
        report = _fold_graphs(graph, fold_all)
        return ir.to_proto(graph), report
    if isinstance(model, ir.Model):
        if example_inputs is not None:
            raise TypeError("fold: an ONNX model needs no example inputs")
        return _fold_graphs(model, fold_all)
    # Only a program that has imported torch already can pass a PyTorch network.
    if "torch" not in sys.modules or not isinstance(model, sys.modules["torch"].nn.Module):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise TypeError(
            f"fold: got {kind}, expected a torch.nn.Module, an onnx.ModelProto, an onnx_ir.Model or the path of an "
            "ONNX file"
        )
    if example_inputs is None:
        return fold_module(model, fold_all=fold_all)
    inputs = example_inputs if isinstance(example_inputs, Sequence) else (example_inputs,)
    return fold_module(model, *inputs, fold_all=fold_all)


def fold_apart(model: ir.Model) -> FoldReport:
    """Fold in place, but leave what a sum adds to a convolution of the same tensor apart from its weights.

    Where the convolution's other weights are small beside what is added, int8 holds the two better so: each row of a
    weight has one scale.
    """
    return _fold_graphs(model, fold_all=False, beside=False)


def fold_module(module: nn.Module, *example_inputs: Any, fold_all: bool = False) -> tuple[fx.GraphModule, FoldReport]:
    """Return a folded copy of a PyTorch network and the report, as :func:`fold` does; each input is an argument."""
    from normfold.export.fold import modules

    return modules.fold_module(module, *example_inputs, fold_all=fold_all)


def _fold_graphs(model: ir.Model, fold_all: bool, beside: bool = True) -> FoldReport:
    opset = _opset(model)
    try:
        model.graph.sort()
    except ValueError:
        raise FoldError("the graph has a cycle: a node reads what is computed from its own output") from None
    before = counts(model)
    notes = _constants_of_old_files(model)
    # Drop unread BatchNorms first: folding one into its producer would change a tensor that others still use.
    norms = _batchnorms(model)
    passes.RemoveUnusedNodesPass()(model)
    read = set(_batchnorms(model))
    folds = [
        Fold(module_of(node) or node.name or "", "BatchNorm", True, "nothing read it")
        for node in norms
        if node not in read
    ]
    share_names(model.graph)
    for graph in (model.graph, *model.graph.subgraphs()):
        split_plainly(graph, opset)
    infer_shapes(model)
    if take_branches(model):
        infer_shapes(model)
    graphs = [model.graph, *model.graph.subgraphs()]
    for graph in graphs:
        join_padding(graph, opset)
    notes += tuple(
        f"{module_of(conv) or conv.name or 'a convolution'} {what}" for conv, what in cut_taps(model.graph, opset)
    )
    carriers = removed = sums = 0
    affines_before, affines_after = len(folds), 0
    for graph in graphs:
        net = Reading(graph, opset).net()
        affines_before += len(targets(net.ops))
        folding = Folding(net, fold_all, beside)
        folding.run()
        removed += prune(net)
        write(folding, graph, opset)
        affines_after += len(targets(folding.net.ops))
        folds += folding.folds
        folds += [_not_read(op) for op in net.ops if op.node.op_type == "BatchNormalization" and op.passes_nothing]
        carriers += folding.carriers
        sums += folding.sums
    passes.RemoveUnusedNodesPass()(model)
    # Once more: a BatchNorm may be gone from between a Pad and its convolution, and unneeded readers of the Pad, too.
    if sum(join_padding(graph, opset) for graph in graphs):
        passes.RemoveUnusedNodesPass()(model)
    for graph in graphs:
        thin(graph)
    model.graph.sort()
    after = counts(model)
    return FoldReport(
        folds=tuple(folds),
        batchnorms_before=before[0],
        batchnorms_after=after[0],
        affines_before=affines_before,
        affines_after=affines_after,
        nodes_before=before[1],
        nodes_after=after[1],
        parameters_before=before[2],
        parameters_after=after[2],
        carriers=carriers,
        channels_removed=removed,
        sums_removed=sums,
        notes=notes,
        **kept(folds),
    )


def _opset(model: ir.Model) -> int:
    """Return the opset of the standard operators, and import them as "" where the model calls them "ai.onnx".

    Raises FoldError for an opset whose operators mean something else: before 7 Add and Mul take an axis, before 9 a
    BatchNormalization may have statistics for each position.
    """
    imports = model.opset_imports
    if "ai.onnx" in imports:
        imports.setdefault("", imports.pop("ai.onnx"))
    opset = imports.get("", 18)
    if opset < OLDEST_OPSET:
        raise FoldError(
            f"the model is written in opset {opset}; expected {OLDEST_OPSET} or newer, because older operators mean "
            "something else. Convert it first: onnx.version_converter.convert_version(model, 18)"
        )
    return opset


def _constants_of_old_files(model: ir.Model) -> tuple[str, ...]:
    """Make the initializers of a file before IR version 4 constants: there each had to be an input of the graph too."""
    held = [v for v in model.graph.inputs if v.name in model.graph.initializers]
    if model.ir_version is None or model.ir_version >= 4 or not held:
        return ()
    for value in held:
        model.graph.inputs.remove(value)
    model.ir_version = 4
    return ("the weights, which were inputs of the graph too in this old file (IR version 3), are constants now",)


def _not_read(op: Op) -> Fold:
    """Return the report of a BatchNorm that no reader understands."""
    node = op.node
    if normalises_by_batch(node):
        reason = "it is in training mode and normalises with the statistics of the batch; export the network in eval()"
    elif any(v is not None and v.is_graph_input() for v in node.inputs[1:]):
        reason = (
            "its parameters are inputs of the network, so a caller may replace them; export the network with constant "
            "weights (torch: keep_initializers_as_inputs=False)"
        )
    elif op.inputs and op.inputs[0].shape is None:
        reason = "the rank of its input is not known; give the file shapes (onnx.shape_inference.infer_shapes)"
    elif op.inputs and len(op.inputs) > 1:
        reason = "its parameters are computed when the network runs, so no weights can hold them"
    else:
        reason = "its parameters are not finite"
    return Fold(op.name, "BatchNorm", False, "", (reason,))


def _batchnorms(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type == "BatchNormalization"]


def counts(model: ir.Model) -> tuple[int, int, int]:
    """Return the numbers of BatchNorms, of nodes, and of values in floating-point initializers."""
    nodes = list(model.graph.all_nodes())
    batchnorms = len(_batchnorms(model))
    floats = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    graphs = (model.graph, *model.graph.subgraphs())
    held = [v.const_value for graph in graphs for v in graph.initializers.values() if v.const_value is not None]
    return batchnorms, len(nodes), sum(int(c.size) for c in held if c.dtype in floats)
