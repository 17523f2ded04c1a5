"""From a dataclass to the values of JSON, and back: every value is checked against the type of its field.

A field may be a str, bool, int, float, Path, bytes, a tuple or dataclass of these, or any of them ``| None``. JSON has
no bytes: they are kept in a list beside it, and the JSON has their place in that list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


def to_values(value: Any, parts: list[bytes]) -> Any:
    """``value`` as ``json.dumps`` takes it; its bytes are appended to ``parts``, the same ones only once in a row."""
    if isinstance(value, bytes):
        if not parts or parts[-1] is not value:
            parts.append(value)
        return len(parts) - 1
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [to_values(each, parts) for each in value]
    if dataclasses.is_dataclass(value):
        return {field.name: to_values(getattr(value, field.name), parts) for field in dataclasses.fields(value)}
    return value


def from_values(kind: type[Kind], values: Mapping[str, object], parts: Sequence[bytes] = ()) -> Kind:
    """The dataclass with these fields. Raises ValueError when one is missing, unknown or of another type."""
    hints = _hints(kind)
    if values.keys() != hints.keys():
        unknown, missing = sorted(values.keys() - hints.keys()), sorted(hints.keys() - values.keys())
        raise ValueError(f"{kind.__name__} has unknown fields {unknown} and lacks {missing}")
    return kind(**{name: _checked(hints[name], values[name], f"{kind.__name__}.{name}", parts) for name in hints})


def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _checked(hint: Any, value: Any, where: str, parts: Sequence[bytes]) -> Any:
    """``value`` as the type ``hint`` has it. Raises ValueError."""
    if get_origin(hint) is UnionType:
        if value is None:
            hint = NoneType if NoneType in get_args(hint) else hint
        else:
            (hint,) = (each for each in get_args(hint) if each is not NoneType)
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        hints = get_args(hint)
        kinds = hints[:1] * len(value) if hints[-1] is Ellipsis else hints
        if len(kinds) == len(value):
            return tuple(_checked(*pair, where, parts) for pair in zip(kinds, value, strict=True))
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return from_values(hint, value, parts)
    elif hint is bytes and type(value) is int and 0 <= value < len(parts):
        return parts[value]
    elif hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif type(value) is hint:
        return value
    raise ValueError(f"{where} must be {getattr(hint, '__name__', hint)}, got {type(value).__name__}")
