"""Read a checkpoint without running code from it, and load it into a network, key by key.

safetensors files hold numbers only; ``torch_file.py`` reads the others.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from normfold.export.errors import CheckpointError
from normfold.export.plain_module import duplicate
from normfold.export.sources.checkpoint_keys import (
    Accepts,
    Found,
    choose_tensors,
    has_shape_of,
    holds_state_dict,
    is_whole,
    needed_keys,
    some,
)
from normfold.export.sources.named import no_weights
from normfold.export.sources.torch_file import CONVERT, read_torch
from normfold.plain_file import read_plain_file

__all__ = ["Checkpoint", "load_into", "read_checkpoint", "takes"]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file by the network's keys."""

    tensors: Mapping[str, Tensor]
    #: sha256 of the bytes that the tensors were read from.
    sha256: str
    #: How the tensors were found, for the report.
    notes: tuple[str, ...] = ()


def read_checkpoint(
    path: Path,
    expected: Mapping[str, Tensor] | None = None,
    key: str = "",
    sha256: str = "",
    accepts: Accepts = lambda tensors: False,
) -> Checkpoint:
    """Read ``path``: safetensors, or a torch zip or legacy file of tensors.

    ``sha256``: the digest that the file must have, in hexadecimal; "": any. Nothing in a safetensors file shows that it
    was damaged.

    expected is the network's own state_dict, which shows where in the file its tensors are; ``key`` chooses where the
    file holds several networks that fit. ``accepts`` says whether the network takes tensors that have other keys.
    Raises CheckpointError where the file is missing, damaged, a pickle that needs code, holds no state_dict, or holds
    several and no ``key`` is given.
    """
    try:
        content = read_plain_file(path)
    except FileNotFoundError:
        raise no_weights(path) from None
    except IsADirectoryError:
        raise CheckpointError(f"weights '{path}' is a directory, not a file{_within(path)}") from None
    except OSError as error:
        raise CheckpointError(f"weights '{path}' cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(content).hexdigest()
    if sha256 and digest != sha256.lower():
        raise CheckpointError(
            f"weights '{path}' have the SHA-256 {digest}, but --weights-sha256 is {sha256}: this is another file, or "
            "it was changed or damaged"
        )
    if not content:
        raise CheckpointError(f"weights '{path}' is an empty file")
    if path.suffix == ".safetensors" or _looks_like_safetensors(content):
        found = _find_tensors(_read_safetensors(content, path), expected or {}, path, key, accepts)
        return Checkpoint(found.tensors, digest, found.notes)
    if content.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"weights '{path}' is a Git LFS pointer, not the file itself: run `git lfs pull`")
    if path.name.endswith(".index.json"):
        raise CheckpointError(f"weights '{path}' only lists the files that hold the weights together; {_join(path)}")
    file = read_torch(content, path)
    if file.refusal and not holds_state_dict(file.value):
        raise file.refusal
    found = _find_tensors(file.value, expected or {}, path, key, accepts)
    if file.refusal and not (is_whole(found.tensors, expected or {}) or accepts(found.tensors)):
        raise file.refusal  # the weights may be in what was left out
    return Checkpoint(found.tensors, digest, (*found.notes, *_left_out(file.left_out)))


def load_into(network: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Copy the checkpoint's tensors into ``network``.

    Raises CheckpointError where

    - keys are missing, unexpected or of another shape, and the network's own load_state_dict does not take them (the
      message has similar keys);
    - a weight is NaN, or two keys of one tensor differ;
    - a tensor's numbers would change: sparse, quantised and complex tensors, integers instead of learned floats, and
      fractions instead of integers.

    Lazy layers take their shapes from the file. Counters of seen batches (``num_batches_tracked``) may be missing:
    inference never reads them. Of the keys of one tensor one is enough.
    """
    wanted = network.state_dict()
    tensors = checkpoint.tensors
    needed = needed_keys(wanted)
    missing = [keys[0] for keys in needed if not any(k in tensors for k in keys)]
    unexpected = [k for k in tensors if k not in wanted]
    shapes = [
        f"  {k}: the file has {list(tensors[k].shape)}, the network {list(wanted[k].shape)}"
        for k in wanted
        if k in tensors and not has_shape_of(tensors[k], wanted[k])
    ]
    differs = bool(missing or unexpected or shapes)
    if differs and not takes(network, tensors):
        raise CheckpointError(_mismatch(path, missing, unexpected, shapes, tensors, wanted))
    learned = dict(network.named_parameters(remove_duplicate=False))
    unlike = [
        f"'{k}' is {_form(tensors[k])}, and {_form(wanted[k])} in the network"
        for k in wanted
        if k in tensors and has_shape_of(tensors[k], wanted[k]) and not _copies(tensors[k], wanted[k], k in learned)
    ]
    if unlike:
        raise CheckpointError(
            f"weights '{path}': {'; '.join(unlike[:8])}. Numbers would be lost: save them in the network's own form, "
            "as it was before it was quantised or changed"
        )
    if broken := _with_nan(tensors):
        raise CheckpointError(f"weights '{path}': {some(broken)} hold NaN, so every answer of the network would be NaN")
    for keys in needed:
        given = [k for k in keys if k in tensors]
        if any(not bool((tensors[given[0]] == tensors[k]).all()) for k in given[1:]):
            raise CheckpointError(
                f"weights '{path}': {some(given)} are one tensor in the network, but differ in the file"
            )
    network.load_state_dict(copy.copy(tensors), strict=differs)


def takes(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the network's own load_state_dict takes all of the tensors; its hooks may rename keys of older files.

    This is tried on a copy full of NaN: the network stays as it is, and a weight that its own code leaves out shows.
    """
    tried = duplicate(network)
    held = [v for v in tried.state_dict().values() if not is_lazy(v) and v.is_floating_point()]
    for weight in held:
        weight.fill_(float("nan"))
    try:
        left = tried.load_state_dict(copy.copy(tensors), strict=True)
    except Exception:  # torch's error for keys and shapes, and whatever the network's own code raises
        return False
    if getattr(left, "missing_keys", ()) or getattr(left, "unexpected_keys", ()):
        return False
    return bool(_with_nan(tensors)) or not _with_nan(tried.state_dict())


def _copies(tensor: Tensor, wanted: Tensor, learned: bool) -> bool:
    """Whether ``wanted`` takes the numbers of ``tensor`` as they are, where torch copies whatever it is.

    Where a network has ``learned`` floats, integers are those of a quantised network, without their scale; in a buffer,
    such as a mask or positions, they mean themselves.
    """
    if is_lazy(tensor):
        return True
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    if wanted.is_complex():
        return True
    if tensor.is_complex():
        return False
    if wanted.is_floating_point() and (learned or tensor.is_floating_point()):
        return tensor.is_floating_point()
    copied = tensor.to(wanted.dtype)
    return bool(copied.isfinite().all()) and torch.equal(tensor, copied.to(tensor.dtype))


def _form(tensor: Tensor) -> str:
    """The kind of a tensor, for a message: "sparse_coo", "without numbers (meta)", "int8"."""
    if tensor.is_meta:
        return "without numbers (meta)"
    return str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")


def _with_nan(tensors: Mapping[str, Tensor]) -> list[str]:
    """The keys of the tensors that hold NaN."""
    floats = {k: v for k, v in tensors.items() if not is_lazy(v) and v.is_floating_point()}
    return [k for k, v in floats.items() if bool(v.isnan().any())]


def _within(directory: Path) -> str:
    """The end of a sentence about a directory: what to give instead."""
    if any(directory.glob("*.distcp")):
        return (
            "; make a file of it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save("
            f"'{directory}', 'weights.pt')"
        )
    files = sorted(p for p in directory.glob("*") if p.suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin"))
    return f"; give a file in it, for example '{files[0]}'" if files else ""


def _join(path: Path) -> str:
    """Advice for weights that are in several files."""
    form, end = ("torch", "bin") if ".bin" in path.name else ("safetensors.torch", "safetensors")
    load, save, written = ("load", "save", "pt") if form == "torch" else ("load_file", "save_file", end)
    return (
        f"join the parts in one file: {form}.{save}({{k: v for part in sorted(glob.glob('*-of-*.{end}')) "
        f"for k, v in {form}.{load}(part).items()}}, 'weights.{written}')"
    )


def _left_out(names: tuple[str, ...]) -> tuple[str, ...]:
    """The note on objects beside the weights; none where there are none."""
    if not names:
        return ()
    return (f"the file also holds objects that were left out, and no code of theirs was run: {some(list(names))}",)


def _looks_like_safetensors(content: bytes) -> bool:
    if len(content) < 10:
        return False
    (length,) = struct.unpack("<Q", content[:8])
    return bool(0 < length <= len(content) - 8 and content[8:9] == b"{")


def _read_safetensors(content: bytes, path: Path) -> dict[str, Tensor]:
    import safetensors.torch

    try:
        return safetensors.torch.load(content)
    except Exception as error:  # SafetensorError, and other errors for a dtype that torch does not know
        raise CheckpointError(f"weights '{path}' is not a whole safetensors file: {error}") from None


def _find_tensors(value: Any, expected: Mapping[str, Tensor], path: Path, key: str, accepts: Accepts) -> Found:
    if isinstance(value, Tensor):
        raise CheckpointError(
            f"weights '{path}' holds one bare tensor {list(value.shape)}, not a state_dict; write {CONVERT}"
        )
    if not isinstance(value, Mapping):
        raise CheckpointError(f"weights '{path}' holds a {type(value).__name__}, not a state_dict; write {CONVERT}")
    return choose_tensors(value, expected, path, key, accepts)


def _mismatch(
    path: Path,
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
    tensors: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
) -> str:
    lines = [f"weights '{path}' do not fit the network:"]
    if missing and (part := re.search(r"-0*(\d+)-of-0*(\d+)\.", path.name)):
        lines.append(f"  the file is part {part[1]} of {part[2]}; {_join(path)}")
    shown = 8
    for key in missing[:shown]:
        near = _nearest(key, unexpected, tensors, wanted[key])
        lines.append(f"  the network's '{key}' is not in the file" + (f"; the file has '{near}'" if near else ""))
    if len(missing) > shown:
        lines.append(f"  … and {len(missing) - shown} more keys of the network are not in the file")
    lines += [f"  the file's '{k}' {list(tensors[k].shape)} is not in the network" for k in unexpected[:shown]]
    if len(unexpected) > shown:
        lines.append(f"  … and {len(unexpected) - shown} more keys of the file are not in the network")
    lines += shapes[:shown]
    if len(shapes) > shown:
        lines.append(f"  … and {len(shapes) - shown} more shapes differ")
    if shapes and not missing and not unexpected:
        lines.append(
            "  every key is there: the network was probably built with other sizes; give them with --arg name=value"
        )
    return "\n".join(lines)


def _nearest(key: str, among: list[str], tensors: Mapping[str, Tensor], like: Tensor) -> str | None:
    same = [k for k in among if has_shape_of(tensors[k], like)]
    near = difflib.get_close_matches(key, same, n=1, cutoff=0.5) or difflib.get_close_matches(
        key, among, n=1, cutoff=0.7
    )
    return near[0] if near else None
