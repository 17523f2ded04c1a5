"""Clean up a captured graph for the fold and for readers.

torch writes five debugging entries into every node, among them stack traces with local paths: they are most of a small
file, and they leak the paths. They are removed; only the path of the node's PyTorch module is kept, under
``normfold.module``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer

from normfold.export.graphs.names import Names
from normfold.export.inputs.specs import Dimension, InputSpec

__all__ = ["MODULE", "name_dimensions", "strip", "tidy"]

#: The one metadata entry of a node that the fold's report reads: the module's path, "encoder.conv1_bn".
MODULE = "normfold.module"
_SCOPES = "pkg.torch.onnx.name_scopes"
#: Constants of any size are computed now, because weight normalisation, for example, is arithmetic on weights.
_NO_LIMIT = 1 << 40


def tidy(model: ir.Model, outputs: Sequence[str]) -> None:
    """Compute constants, remove unused nodes, name outputs and weights, keep each node's module; in place."""
    for node in _nodes(model.graph):
        module = _module_path(node.metadata_props.get(_SCOPES, ""))
        node.metadata_props.clear()
        if module:
            node.metadata_props[MODULE] = module
    with suppress(Exception):  # an operator that it cannot read: what is computed so far stays, and the proof judges it
        optimizer.fold_constants(
            model, onnx_shape_inference=False, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT
        )
    for graph in (model.graph, *model.graph.subgraphs()):
        _remove_identities(graph)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    passes.RemoveUnusedOpsetsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    strip(model, keep_module=True)
    _name_weights(model)
    _name_outputs(model, outputs)


def _remove_identities(graph: ir.Graph) -> None:
    """Let readers of an Identity read its input. A graph's outputs stay values of its own nodes, each a different one.

    onnx_ir's pass makes a value from outside the output of a Loop's body, which is no graph.
    """
    for node in list(graph):
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
            continue
        old, new = node.outputs[0], node.inputs[0]
        made = new.producer()
        if old.is_graph_output() and (made is None or made.graph is not graph or new.is_graph_output()):
            continue
        new.shape = old.shape if new.shape is None else new.shape
        new.type = old.type if new.type is None else new.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def strip(model: ir.Model, keep_module: bool = False) -> None:
    """Remove all metadata on where and how the graph was made, in place; keep_module keeps ``normfold.module``."""
    for graph in [model.graph, *(f.graph for f in model.functions.values())]:
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
            value.metadata_props.clear()
            value.doc_string = None
            tensor = value.const_value
            if tensor is not None and (tensor.metadata_props or tensor.doc_string):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
        for node in _nodes(graph):
            module = node.metadata_props.get(MODULE)
            node.metadata_props.clear()
            node.meta.clear()
            node.doc_string = None
            if keep_module and module:
                node.metadata_props[MODULE] = module
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None
    model.metadata_props.clear()
    model.doc_string = None


def name_dimensions(model: ir.Model, specs: Sequence[InputSpec]) -> None:
    """Give torch's symbols (s77) the names of the inputs' dimensions, in every shape of the graph, in place."""
    names: dict[str, str] = {}
    for value, spec in zip(model.graph.inputs, specs, strict=True):
        assert value.shape is not None
        for axis, d in enumerate(spec.dims):
            symbol = value.shape[axis]
            if isinstance(d, Dimension) and isinstance(symbol, ir.SymbolicDim) and symbol.value is not None:
                names.setdefault(symbol.value, d.name)
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(d, names) for d in value.shape])


def _renamed(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    if dim.value in names:  # a size of an input such as 2*s77
        return names[dim.value]
    return re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), dim.value)


def _name_weights(model: ir.Model) -> None:
    """Remove the attribute of :class:`NamedNetwork` from the front of weight names, where names stay distinct."""
    taken = {v.name for v in _values(model.graph)}
    for value in list(model.graph.initializers.values()):
        assert value.name is not None
        short = value.name.removeprefix("network.")
        if short != value.name and short not in taken:
            taken.add(short)
            value.name = short


def _name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Give the graph's outputs ``names``; other values with one of these names are renamed."""
    used = Names(model.graph)
    for value in _values(model.graph):
        if value.name in names and not any(value is o for o in model.graph.outputs):
            value.name = used.fresh(f"{value.name}_inner")
    outputs = list(model.graph.outputs)
    for index, (value, name) in enumerate(zip(outputs, names, strict=True)):
        if value.is_graph_input() or value.is_initializer() or any(value is o for o in outputs[:index]):
            copy = ir.node("Identity", [value], name=f"node_{name}")
            model.graph.append(copy)
            new = copy.outputs[0]
            new.shape, new.type = value.shape, value.type
            model.graph.outputs[index] = new
            new.name = name
        else:
            value.name = name


def _module_path(scopes: str) -> str:
    """Return "encoder.conv1" for "['', 'network', 'network.encoder.conv1', 'conv1d']"; "" for the network itself."""
    try:
        names = ast.literal_eval(scopes) if scopes else []
    except (ValueError, SyntaxError):
        return ""
    if not isinstance(names, list) or len(names) < 2:
        return ""
    path = str(names[-2])
    return path.removeprefix("network").removeprefix(".")


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield every node of the graph and of the graphs inside its nodes."""
    yield from graph.all_nodes()


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs
