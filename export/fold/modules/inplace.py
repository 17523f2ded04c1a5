"""Calls that change a tensor in place become calls that return a new one.

    x.relu_(); f(x)    ->    y = x.relu(); f(y)

A fold removes operators between two names of one tensor, so that a change in place would change both.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from normfold.export.errors import FoldError

_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def out_of_place(root: nn.Module, graph: fx.Graph) -> None:
    """Make every call of the graph return a new tensor, which all later calls read; ``root`` is changed, too.

    Raises:
        FoldError: no call returns the changed tensor as a new one (``x[:, 0] = 1``, ``copy_``).
    """
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op == "output":
            continue
        if not _changes_in_place(root, node):
            continue
        if not node.args or not isinstance(node.args[0], fx.Node) or node.args[0].op == "get_attr":
            _refuse(node)
        node.args[0].replace_all_uses_with(node, lambda user, at=place[node]: place[user] > at)
    for module in root.modules():
        if getattr(module, "inplace", False) is True:
            module.__dict__["inplace"] = False


def _changes_in_place(root: nn.Module, node: fx.Node) -> bool:
    """Whether a call changes its first argument; if so, it becomes the call that does not."""
    target: Any = node.target
    if node.op == "call_module":
        return getattr(root.get_submodule(target), "inplace", False) is True
    if node.op == "call_method" and target.endswith("_") and not target.endswith("__"):
        if not hasattr(torch.Tensor, target[:-1]):
            _refuse(node)
        node.target = target[:-1]
        return True
    if node.op != "call_function":
        return False
    if target is operator.setitem or node.kwargs.get("out") is not None:
        _refuse(node)
    if target in _OPERATORS:
        node.target = _OPERATORS[target]
        return True
    name = getattr(target, "__name__", "")
    if name.endswith("_") and not name.startswith("_"):
        plain: Any = getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)
        if plain is None:
            _refuse(node)
        node.target = plain
        return True
    return _turn_inplace_off(node)


def _turn_inplace_off(node: fx.Node) -> bool:
    """Whether a function was called with inplace=True; if so, this is set to False."""
    target: Any = node.target
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # a function written in C, which takes no such argument
        return False
    if bound.arguments.get("inplace") is not True:
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


def _refuse(node: fx.Node) -> None:
    what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    raise FoldError(
        f"the network changes a tensor in place by '{what}' (call '{node.name}'), which no graph of calls can express; "
        "compute a new tensor instead (torch.cat, torch.where), or export it with `normfold export`."
    )
