"""Values as JSON that every reader takes: json.dumps writes NaN and infinity as words that are no JSON."""

from __future__ import annotations

import json
import math

__all__ = ["finite_json"]


def finite_json(value: object, indent: int | None = None, ascii_only: bool = True) -> str:
    """``value`` as JSON; NaN and infinity are texts, as in the JSON of protobuf.

    >>> finite_json({"y": [1.5, float("-inf")]})
    '{"y": [1.5, "-Infinity"]}'
    """
    try:
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=ascii_only, indent=indent)


def _finite(value: object) -> object:
    """``value`` with a text in the place of each number that is NaN or infinite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
