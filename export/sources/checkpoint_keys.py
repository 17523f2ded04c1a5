"""Which tensors of a checkpoint are the network's: it may hold them under a key, behind a prefix, and more than once.

{"state_dict": {...}, "state_dict_ema": {...}}         two networks, called by their keys
{"module.conv.weight": ...}                            one, behind the prefix of a wrapper
{"student.conv.weight": ..., "teacher.conv.weight"}    two, called by their prefixes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from normfold.export.errors import CheckpointError

__all__ = ["Found", "choose_tensors", "has_shape_of", "is_state_dict", "some"]

#: Prefixes that wrappers (DataParallel, torch.compile, Lightning) put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
#: How deep in a checkpoint's dictionaries a state_dict may be.
DEPTH = 3


@dataclass(frozen=True)
class Found:
    """The tensors that fit the network best, under its own keys."""

    #: "state_dict", "student", "state_dict.student"; "" where the file holds nothing else.
    name: str
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def choose_tensors(content: Any, expected: Mapping[str, Tensor], path: Path, key: str = "") -> Found:
    """Return the network's tensors in ``content``; ``key`` chooses where several networks are in it.

    Raises CheckpointError where there is no state_dict, nothing called ``key``, or more than one network that fits and
    no ``key``.
    """
    held = dict(_state_dicts(content))
    if not held:
        raise CheckpointError(f"weights '{path}' holds no state_dict; its keys are {some([str(k) for k in content])}")
    found = [f for nest, tensors in held.items() for f in _networks(nest, tensors, expected)]
    if key:
        return _called(key, found, held, path)
    whole = [f for f in found if all(has_shape_of(f.tensors[k], v) for k, v in _needed(expected).items())] or found
    if not whole:
        nest = max(held, key=lambda name: len(expected.keys() & _without_prefix(held[name], expected).keys()))
        return Found(nest, _without_prefix(held[nest], expected), _nested(nest))
    first, *others = whole
    different = [f for f in others if not _equal(first, f, expected)]
    if different:
        names = [f.name or "." for f in (first, *different)]
        raise CheckpointError(
            f"weights '{path}' hold {len(names)} networks that fit: {some(names)}. Choose one with --weights-key, for "
            f"example --weights-key {names[-1]}"
        )
    return first


def is_state_dict(value: Any) -> bool:
    """Whether a value is a mapping from names to tensors."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def has_shape_of(tensor: Tensor, like: Tensor) -> bool:
    """Whether a tensor of a file has the shape of the network's; a lazy layer takes any shape."""
    return bool(is_lazy(like) or (not is_lazy(tensor) and tensor.shape == like.shape))


def some(names: list[str], shown: int = 5) -> str:
    """Return the first names in quotes, and how many more there are."""
    text = ", ".join(f"'{n}'" for n in names[:shown])
    return f"{text} and {len(names) - shown} more" if len(names) > shown else text


def _state_dicts(value: Any, name: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield every state_dict inside, with the keys that lead to it."""
    if is_state_dict(value):
        yield name, value
    elif isinstance(value, Mapping) and depth:
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _state_dicts(inner, f"{name}.{key}" if name else key, depth - 1)


def _needed(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the keys that a file must hold; a counter of seen batches may be missing."""
    return {k: v for k, v in expected.items() if not k.endswith("num_batches_tracked")}


def _networks(nest: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[Found]:
    """Yield the network as often as a state_dict holds all of its keys, each time behind another prefix."""
    needed = _needed(expected)
    if not needed:
        return
    longest = max(needed, key=len)
    for prefix in [k.removesuffix(longest) for k in tensors if k.endswith(longest)]:
        if (prefix and not prefix.endswith(".")) or not all(f"{prefix}{k}" in tensors for k in needed):
            continue
        inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        outside = [k for k in tensors if not k.startswith(prefix)]
        note = f"'{prefix}' was taken off the front of every key"
        if outside:
            note = f"the network's keys were found behind '{prefix}'; {some(outside)} are not part of the network"
        behind = prefix.rstrip(".") if outside else ""
        name = ".".join(part for part in (nest, behind) if part)
        yield Found(name, inside, (*_nested(nest), *([note] if prefix else [])))


def _called(key: str, found: list[Found], held: Mapping[str, Mapping[str, Tensor]], path: Path) -> Found:
    wanted = key.rstrip(".") if key != "." else ""
    known = {f.name: f for f in (*(Found(n, t, _nested(n)) for n, t in held.items()), *found)}
    fits = [f for name, f in known.items() if name == wanted or (wanted and name.endswith(f".{wanted}"))]
    if len(fits) == 1:
        return fits[0]
    names = [n or "." for n in known]
    what = f"{len(fits)} networks that end in" if fits else "no network called"
    raise CheckpointError(f"weights '{path}' hold {what} '{key}' (--weights-key); they hold {some(names)}")


def _nested(nest: str) -> tuple[str, ...]:
    return (f"the weights were found under '{nest}' in the checkpoint",) if nest else ()


def _without_prefix(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the known prefixes that every key has, for a network that is not whole in the file."""
    current = dict(tensors)
    while current and not expected.keys() & current.keys():
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in current)), None)
        if prefix is None:
            return dict(tensors)
        current = {k.removeprefix(prefix): v for k, v in current.items()}
    return current


def _equal(a: Found, b: Found, expected: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(a.tensors[k], b.tensors[k]) for k in _needed(expected))
