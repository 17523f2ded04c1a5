"""Names of nodes and values that are new in a graph."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["Names", "share_names"]

#: Where a subgraph keeps the graph of the whole model.
_WHOLE = "normfold.whole_graph"


def share_names(graph: ir.Graph) -> None:
    """Let new names in each subgraph of ``graph`` be new in all of it: one that is used outside would hide that."""
    for inner in graph.subgraphs():
        inner.meta[_WHOLE] = graph


class Names:
    """The names in use in one graph and its subgraphs, and in the graph around it where names are shared."""

    def __init__(self, graph: ir.Graph) -> None:
        whole = graph.meta.get(_WHOLE, graph)
        nodes = list(whole.all_nodes())
        held = (v for g in (whole, *whole.subgraphs()) for v in (*g.inputs, *g.initializers.values()))
        values = [*held, *(v for n in nodes for v in n.outputs)]
        # onnxruntime wants unique node names; reserving them for values too is harmless.
        self._used = {v.name for v in values} | {n.name for n in nodes}

    def fresh(self, name: str) -> str:
        """Return ``name``, or ``name`` with the first number that makes it new; it counts as used from now on."""
        number, fresh = 1, name
        while fresh in self._used:
            fresh, number = f"{name}_{number}", number + 1
        self._used.add(fresh)
        return fresh
