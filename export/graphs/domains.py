"""The names of ONNX's own domain."""

from __future__ import annotations

__all__ = ["STANDARD"]

#: Two names of the same; an operator or function of another domain may have the name of a standard one.
STANDARD = ("", "ai.onnx")
