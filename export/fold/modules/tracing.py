"""From an ``nn.Module`` to a graph of its calls that changes no tensor in place.

``torch.fx`` runs the network once with proxies for its inputs and records every call. A network whose path depends on
its numbers cannot be recorded so. It is refused, with the line of code that stopped the tracing.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from normfold.export.errors import CaptureError, FoldError
from normfold.export.fold.modules.inplace import out_of_place
from normfold.export.fold.modules.tracer import KNOWN, Tracer
from normfold.export.plain_module import duplicate, unwrapped, with_plain_weights
from normfold.export.state import kept_state, message, other_inputs
from normfold.export.user_code import first_line, line_of_error

_OTHERWISE = "export it with `normfold export` instead, which folds the ONNX graph"


def plain_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a network in eval mode without what wraps it, and with the values of computed weights.

    Raises:
        FoldError: the network cannot be copied, or a wrapper around it has a hook.
    """
    try:
        inner = unwrapped(module)
    except CaptureError as error:
        raise FoldError(str(error)) from None
    try:
        network = duplicate(inner).eval()
    except Exception as error:
        raise FoldError(f"{type(inner).__name__}: the network cannot be copied: {error}.") from error
    with_plain_weights(network)
    return network


def traced(module: nn.Module, example: tuple[Any, ...]) -> fx.GraphModule:
    """Return a network in eval mode as a graph of calls; the network itself is left as it is.

    example: the arguments that it is called with; further arguments of ``forward`` keep their defaults.

    Raises:
        FoldError: the network cannot be traced, or changes a tensor as no graph of calls can.
    """
    name = type(module).__name__
    root = copy.deepcopy(module)
    tracer = Tracer(example)
    if tracer.is_leaf_module(root, ""):
        root = nn.Sequential(root)
    defaults = _defaults(root, len(example), name)
    try:
        graph = tracer.trace(root, concrete_args=dict(defaults) or None)
    except Exception as error:
        where = line_of_error(error) or name
        raise FoldError(f"{name}: torch.fx cannot trace the network: {where}: {_why(error)}{_OTHERWISE}.") from error
    _forget(graph, defaults)
    for node in graph.nodes:
        if isinstance(node.type, str):  # pickle cannot import an annotation that was not evaluated
            node.type = None
    out_of_place(root, graph)
    graph_module = fx.GraphModule(root, graph, class_name=name)
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def _why(error: BaseException) -> str:
    """Return what an error says, without the name of the class that stands for a value, and what to do."""
    text = first_line(error).replace(f"'{KNOWN}' object", "a size or a value that is computed from the input")
    if "interpreted as an integer" not in text:
        return f"{text}; "
    return (
        f"{text}. Write int() around the size, as in range(int(x.shape[-1])), and give fold() example inputs: the "
        "folded network then takes their sizes only. Or "
    )


def refuse_state(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise FoldError where an answer of the network depends on its earlier calls."""
    network = copy.deepcopy(module)

    def run(number: int) -> Any:
        return network(*tree_map(lambda leaf: _other(leaf, number), inputs))

    try:
        written = kept_state(network, run)
    except Exception:
        return  # it does not take the example: the comparison with the traced graph says so
    if written is not None:
        raise FoldError(f"{type(module).__name__}: {message(written)}.")


def _other(leaf: Any, number: int) -> Any:
    return other_inputs(leaf, number) if isinstance(leaf, torch.Tensor) else leaf


def refuse_uninitialised(module: nn.Module) -> None:
    """Raise FoldError where a layer has no shape yet."""
    name = type(module).__name__
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise FoldError(f"{name}: '{path}' has no shape yet; run the network once before it is folded.")


def _defaults(root: nn.Module, count: int, name: str) -> Mapping[str, Any]:
    """Return the arguments of ``forward`` that are not given, with their defaults."""
    parameters = [
        p
        for p in inspect.signature(root.forward).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    variable = len(parameters) < len(inspect.signature(root.forward).parameters)
    needed = sum(p.default is p.empty for p in parameters)
    if count < needed or (count > len(parameters) and not variable):
        wanted = ", ".join(p.name for p in parameters)
        raise FoldError(f"{name}: forward({wanted}) takes {needed} or more inputs; {count} were given as an example.")
    return {p.name: p.default for p in parameters[count:]}


def _forget(graph: fx.Graph, defaults: Mapping[str, Any]) -> None:
    """Remove the arguments that keep their defaults, and the assertions that they do."""
    for node in reversed(list(graph.nodes)):
        if node.op == "placeholder" and str(node.target).rpartition("_")[0] in defaults:
            for user in list(node.users):
                if not user.users:
                    graph.erase_node(user)
            if not node.users:
                graph.erase_node(node)


def refuse_other_numbers(module: nn.Module, graph_module: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
    """Raise FoldError where the graph of calls computes something else than the network on the example.

    torch.fx sees neither that ``y += x`` changes the tensor under every other name, too, nor what a network keeps
    between calls.
    """
    name = type(module).__name__
    first, second = (tree_map(_cloned, inputs) for _ in range(2))
    with torch.no_grad(), torch.random.fork_rng():
        try:
            torch.manual_seed(0)
            wanted = copy.deepcopy(module)(*first)
        except Exception as error:
            where = line_of_error(error)
            raise FoldError(
                f"{name} does not take the example inputs{f' ({where})' if where else ''}: {error}"
            ) from error
        torch.manual_seed(0)
        try:
            got = graph_module(*second)
        except Exception:  # a path that the network itself does not take
            got = None
    a, b = (tree_leaves(t) for t in (wanted, got))
    for want, have in zip(a, b, strict=False):
        if isinstance(want, torch.Tensor) and not _close(want, have):
            break
    else:
        if len(a) == len(b):
            return
    raise FoldError(
        f"{name}: the graph that torch.fx traced computes something else than the network. Most often a tensor is "
        "changed in place (`y += x`, inplace=True) and read under another name, isinstance(x, torch.Tensor) decides, "
        f"or the network itself has a hook; write `y = y + x`, or {_OTHERWISE}."
    )


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def _close(a: torch.Tensor, b: Any) -> bool:
    if not isinstance(b, torch.Tensor) or a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    bound = 1e3 * torch.finfo(a.dtype).eps
    size = float(torch.nan_to_num(a).abs().max()) if a.numel() else 1.0
    return bool(torch.allclose(a, b, rtol=bound, atol=bound * max(size, 1e-30), equal_nan=True))
