"""Which tensors of a checkpoint are the network's: it may hold them under a key, behind a prefix, and more than once.

{"state_dict": {...}, "state_dict_ema": {...}}         two networks, called by their keys
{"module.conv.weight": ...}                            one, behind the prefix of a wrapper
{"student.conv.weight": ..., "teacher.conv.weight"}    two, called by their prefixes

The network's keys must all be there, except counters of seen batches and further keys of a tensor that has several
(tied weights), of which ``safetensors.torch.save_model`` writes one. A network may also rename the keys of older files
when it loads them (``weight_g`` of ``weight_norm``); whether it takes such a file, the network itself says.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from normfold.counting import listed
from normfold.export.errors import CheckpointError

__all__ = ["Accepts", "Found", "choose_tensors", "has_shape_of", "holds_state_dict", "is_whole", "needed_keys", "some"]

#: Whether a network itself loads tensors whose keys are not its own.
Accepts = Callable[[Mapping[str, Tensor]], bool]

#: Prefixes that wrappers (DataParallel, torch.compile, Lightning) put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
#: Wrappers of a part of a network (torch.compile, FSDP, checkpointing, DataParallel) in the keys of its tensors.
_WRAPPERS = re.compile(r"(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module|module)\.)+")
#: How deep in a checkpoint's dictionaries a state_dict may be.
DEPTH = 3


@dataclass(frozen=True)
class Found:
    """The tensors that fit the network best, under its own keys."""

    #: "state_dict", "student", "state_dict.student"; "" where the file holds nothing else.
    name: str
    tensors: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def choose_tensors(
    content: Any, expected: Mapping[str, Tensor], path: Path, key: str = "", accepts: Accepts = lambda tensors: False
) -> Found:
    """Return the network's tensors in ``content``; ``key`` chooses where several networks are in it.

    Raises CheckpointError where there is no state_dict, nothing called ``key``, or more than one network that fits and
    no ``key``.
    """
    held = dict(_state_dicts(content))
    if not held:
        keys = some([str(k) for k in content])
        raise CheckpointError(
            f"weights '{path}' holds no state_dict; {f'its keys are {keys}' if keys else 'it is empty'}"
        )
    needed = needed_keys(expected)
    found = [
        f
        for nest, tensors in held.items()
        for f in list(_networks(nest, tensors, needed)) or _without_wrappers(nest, tensors, needed)
    ]
    found = found or [f for nest, tensors in held.items() for f in _renamed(nest, tensors, expected, accepts)]
    if key:
        return _called(key, found, held, path)
    every = [k for keys in needed for k in keys]
    whole = [f for f in found if all(has_shape_of(f.tensors[k], expected[k]) for k in every if k in f.tensors)] or found
    if not whole:
        nest = max(held, key=lambda name: len(expected.keys() & _without_prefix(held[name], expected).keys()))
        return Found(nest, _without_prefix(held[nest], expected), _nested(nest))
    first, *others = whole
    different = [f for f in others if not _equal(first, f, needed)]
    if different:
        names = [f.name or "." for f in (first, *different)]
        raise CheckpointError(
            f"weights '{path}' hold {len(names)} networks that fit: {some(names)}. Choose one with --weights-key, for "
            f"example --weights-key {names[-1]}"
        )
    return first


def holds_state_dict(value: Any) -> bool:
    """Whether there is a state_dict anywhere inside."""
    return next(_state_dicts(value), None) is not None


def is_whole(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether all keys are there that a file must hold."""
    return all(any(k in tensors for k in keys) for keys in needed_keys(expected))


def has_shape_of(tensor: Tensor, like: Tensor) -> bool:
    """Whether a tensor of a file has the shape of the network's; a lazy layer takes any shape."""
    return bool(is_lazy(like) or (not is_lazy(tensor) and tensor.shape == getattr(like, "shape", None)))


def some(names: list[str]) -> str:
    """Return the first names in quotes, and how many more there are."""
    return listed([f"'{n}'" for n in names])


def _state_dicts(value: Any, name: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield every state_dict inside, with the keys that lead to it; what is beside its tensors ("epoch") is no part."""
    if not isinstance(value, Mapping):
        return
    if tensors := _with_keys(value, lambda key: key):
        yield name, tensors
    if depth:
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _state_dicts(inner, f"{name}.{key}" if name else key, depth - 1)


def needed_keys(expected: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Return the keys that a file must hold, those of one tensor together: one of them is enough.

    A counter of seen batches may be missing.
    """
    together: dict[object, list[str]] = {}
    for key, tensor in expected.items():
        if not key.endswith("num_batches_tracked"):
            together.setdefault(_place(tensor) or key, []).append(key)
    return [tuple(keys) for keys in together.values()]


def _place(tensor: Tensor) -> object:
    """Where the numbers of a tensor are in memory; None where it has none."""
    if not isinstance(tensor, Tensor) or is_lazy(tensor) or tensor.layout is not torch.strided or not tensor.data_ptr():
        return None
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()


def _networks(nest: str, tensors: Mapping[str, Tensor], needed: list[tuple[str, ...]]) -> Iterator[Found]:
    """Yield the network as often as a state_dict holds all of its keys, each time behind another prefix."""
    if not needed:
        return
    longest = max(needed, key=lambda keys: len(keys[0]))
    prefixes = {k.removesuffix(known): None for known in longest for k in tensors if k.endswith(known)}
    for prefix in prefixes:
        if (prefix and not prefix.endswith(".")) or not all(any(f"{prefix}{k}" in tensors for k in n) for n in needed):
            continue
        yield _behind(prefix, nest, tensors)


def _renamed(
    nest: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], accepts: Accepts
) -> Iterator[Found]:
    """Yield the network as often as it takes the tensors behind a prefix although their keys are not all its own.

    Only the prefixes are tried behind which most of the network's keys are.
    """
    prefixes = {key[: i + 1]: None for key in tensors for i, letter in enumerate(key) if letter == "."}
    known = {prefix: sum(f"{prefix}{key}" in tensors for key in expected) for prefix in ("", *prefixes)}
    most = max(known.values())
    for prefix, count in known.items():
        if count == most and (most or all(key.startswith(prefix) for key in tensors)):
            found = _behind(prefix, nest, tensors)
            if accepts(found.tensors):
                note = "the file has other keys than the network, whose own load_state_dict takes them"
                yield Found(found.name, found.tensors, (*found.notes, note))


def _behind(prefix: str, nest: str, tensors: Mapping[str, Tensor]) -> Found:
    """Return the tensors whose keys begin with ``prefix``, without it."""
    outside = [k for k in tensors if not k.startswith(prefix)]
    note = f"'{prefix}' was taken off the front of every key"
    if outside:
        note = f"the network's keys were found behind '{prefix}'; {some(outside)} are not part of the network"
    behind = prefix.rstrip(".") if outside else ""
    name = ".".join(part for part in (nest, behind) if part)
    return Found(name, _stripped(tensors, prefix), (*_nested(nest), *([note] if prefix else [])))


def _without_wrappers(nest: str, tensors: Mapping[str, Tensor], needed: list[tuple[str, ...]]) -> Iterator[Found]:
    """Yield the network where parts of it were wrapped when it was trained: "encoder._orig_mod.conv.weight"."""
    plain = _with_keys(tensors, lambda key: _WRAPPERS.sub(r"\1", key))
    if len(plain) == len(tensors):
        for found in _networks(nest, plain, needed):
            note = "the names of wrappers (torch.compile, FSDP, DataParallel, …) were taken out of the keys"
            yield Found(found.name, found.tensors, (*found.notes, note))


def _stripped(tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """Return the tensors behind ``prefix``."""
    return _with_keys(tensors, lambda key: key.removeprefix(prefix) if key.startswith(prefix) else None)


def _with_keys(values: Mapping[Any, Any], rename: Callable[[str], str | None]) -> Mapping[str, Tensor]:
    """Return the tensors among ``values`` with other keys; None leaves one out.

    torch keeps the version of each layer's format beside them, by the layer's path: "" is the whole network.
    """
    tensors = {k: v for k, v in values.items() if isinstance(k, str) and isinstance(v, Tensor)}
    renamed = OrderedDict((new, v) for k, v in tensors.items() if (new := rename(k)) is not None)
    versions = getattr(values, "_metadata", None)
    if isinstance(versions, Mapping):
        renamed._metadata = {  # type: ignore[attr-defined]
            new.rstrip("."): version
            for path, version in versions.items()
            if (new := rename(f"{path}.")) is not None and isinstance(version, dict)
        }
    return renamed


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


def _without_prefix(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove the known prefixes that every key has, for a network that is not whole in the file."""
    current = tensors
    while current and not expected.keys() & current.keys():
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in current)), None)
        if prefix is None:
            return tensors
        current = _stripped(current, prefix)
    return current


def _equal(a: Found, b: Found, needed: list[tuple[str, ...]]) -> bool:
    """Whether two networks are equal; those that the network itself renames must have the same keys for that."""
    if all(any(k in f.tensors for k in keys) for f in (a, b) for keys in needed):
        shared = [k for keys in needed for k in keys if k in a.tensors and k in b.tensors]
        return all(torch.equal(_one(a, keys), _one(b, keys)) for keys in needed) and all(
            torch.equal(a.tensors[k], b.tensors[k]) for k in shared
        )
    return a.tensors.keys() == b.tensors.keys() and all(torch.equal(v, b.tensors[k]) for k, v in a.tensors.items())


def _one(found: Found, keys: tuple[str, ...]) -> Tensor:
    return next(found.tensors[k] for k in keys if k in found.tensors)
