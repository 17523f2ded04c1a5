"""All nodes of a captured program."""

from __future__ import annotations

from collections.abc import Iterator

from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

__all__ = ["program_nodes"]


def program_nodes(program: ExportedProgram) -> Iterator[Node]:
    """Yield the nodes of ``program``, those in the branches of ``torch.cond`` too."""
    for part in program.graph_module.modules():
        if isinstance(part, GraphModule):
            yield from part.graph.nodes
