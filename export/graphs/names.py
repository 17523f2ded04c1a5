"""Names of nodes and values that are new in a graph."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["Names"]


class Names:
    """The names in use in one graph and its subgraphs."""

    def __init__(self, graph: ir.Graph) -> None:
        nodes = list(graph.all_nodes())
        values = [*graph.inputs, *graph.initializers.values(), *(v for n in nodes for v in n.outputs)]
        # onnxruntime wants unique node names; reserving them for values too is harmless.
        self._used = {v.name for v in values} | {n.name for n in nodes}

    def fresh(self, name: str) -> str:
        """Return ``name``, or ``name`` with the first number that makes it new; it counts as used from now on."""
        number, fresh = 1, name
        while fresh in self._used:
            fresh, number = f"{name}_{number}", number + 1
        self._used.add(fresh)
        return fresh
