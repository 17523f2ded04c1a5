"""The graphs inside of a node: the branches of an If, the body of a Loop or Scan."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["bodies_of"]


def bodies_of(attribute: ir.Attr) -> list[ir.Graph]:
    """Return the graphs that an attribute holds; none for most attributes."""
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
