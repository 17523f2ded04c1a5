"""Read a checkpoint without running code from it, and load it into a network, key by key.

safetensors files hold numbers only. A ``.pt``/``.pth``/``.ckpt``/``.bin`` file is a pickle: only torch's restricted
unpickler reads it (``weights_only=True`` is always passed, so that no environment variable turns it off); a file that
it refuses is not read by a laxer one. torch does not check the CRC-32 of its zip entries, so that a flipped bit would
load without an error; the CRC-32 is checked here first.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normfold.export.errors import CheckpointError
from normfold.export.sources.checkpoint_keys import Accepts, Found, choose_tensors, has_shape_of, needed_keys, some
from normfold.export.sources.plain_module import duplicate
from normfold.plain_file import read_plain_file

__all__ = ["Checkpoint", "load_into", "read_checkpoint", "takes"]

CONVERT = (
    "torch.save(network.state_dict(), 'weights.pt') or safetensors.torch.save_model(network, 'weights.safetensors')"
)


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
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1, cutoff=0.75)
        hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
        raise CheckpointError(f"no file of weights '{path}'{hint}") from None
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
    found = _find_tensors(_read_torch(content, path), expected or {}, path, key, accepts)
    return Checkpoint(found.tensors, digest, found.notes)


def load_into(network: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Copy the checkpoint's tensors into ``network``.

    Raises CheckpointError, with similar keys, where keys are missing, unexpected or of another shape and the network's
    own load_state_dict does not take them, and where a weight is NaN. Lazy layers take their shapes from the file.
    Counters of seen batches (``num_batches_tracked``) may be missing: inference never reads them. Of the keys of one
    tensor one is enough.
    """
    wanted = network.state_dict()
    tensors = checkpoint.tensors
    missing = [keys[0] for keys in needed_keys(wanted) if not any(k in tensors for k in keys)]
    unexpected = [k for k in tensors if k not in wanted]
    shapes = [
        f"  {k}: the file has {list(tensors[k].shape)}, the network {list(wanted[k].shape)}"
        for k in wanted
        if k in tensors and not has_shape_of(tensors[k], wanted[k])
    ]
    differs = bool(missing or unexpected or shapes)
    if differs and not takes(network, tensors):
        raise CheckpointError(_mismatch(path, missing, unexpected, shapes, tensors, wanted))
    broken = [k for k, v in tensors.items() if v.is_floating_point() and bool(v.isnan().any())]
    if broken:
        raise CheckpointError(f"weights '{path}': {some(broken)} hold NaN, so every answer of the network would be NaN")
    network.load_state_dict(copy.copy(tensors), strict=differs)


def takes(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the network's own load_state_dict takes all of the tensors; its hooks may rename keys of older files.

    This is tried on a copy: the network stays as it is.
    """
    try:
        left = duplicate(network).load_state_dict(copy.copy(tensors), strict=True)
    except Exception:  # torch's error for keys and shapes, and whatever the network's own code raises
        return False
    return not (getattr(left, "missing_keys", ()) or getattr(left, "unexpected_keys", ()))


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


def _read_torch(content: bytes, path: Path) -> Any:
    if content.startswith(b"PK"):
        _check_zip(content, path)
    elif not content.startswith(b"\x80"):  # every pickle since 2003 begins so
        known = "a NumPy array" if content.startswith(b"\x93NUMPY") else f"it begins with {content[:8]!r}"
        raise CheckpointError(
            f"weights '{path}' is neither a safetensors nor a torch file ({known}); write the network's weights with "
            f"{CONVERT}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user needs no warnings about pickle protocols
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unsafe(str(error), path)) from None
    except Exception as error:  # RuntimeError, EOFError, KeyError …: torch raises many types for a damaged file
        raise CheckpointError(f"weights '{path}' cannot be read: {_first_line(error)}") from None


def _check_zip(content: bytes, path: Path) -> None:
    """Refuse damaged, compressed and TorchScript archives. torch does not compress, so a compressed file is suspect."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _refuse_torchscript([e.filename for e in entries], path)
            stored = all(e.compress_type == zipfile.ZIP_STORED for e in entries)
            if not stored or sum(e.file_size for e in entries) > len(content):
                raise CheckpointError(
                    f"weights '{path}' is a compressed zip; torch.save writes none. Save it again with {CONVERT}"
                )
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"weights '{path}' is damaged: {error}") from None
    if damaged is not None:
        raise CheckpointError(f"weights '{path}' is damaged: the CRC of its entry '{damaged}' does not match")


def _refuse_torchscript(names: list[str], path: Path) -> None:
    if any("/code/" in f"/{n}" or n.endswith("constants.pkl") for n in names):
        raise CheckpointError(
            f"weights '{path}' is a TorchScript program, not a file of weights: "
            f"load it with torch.jit.load(…), then {CONVERT}"
        )


def _unsafe(message: str, path: Path) -> str:
    if "GLOBAL" in message or "WeightsUnpickler" in message or "Unsupported" in message:
        named = re.search(r"GLOBAL ([\w.]+)", message)
        what = named[1] if named else "Python objects"
        return (
            f"weights '{path}' can only be opened by running code from inside it (it needs {what}), so it was not "
            "opened. "
            f"Where the training code is, save only the numbers: {CONVERT}"
        )
    return f"weights '{path}' is not a file of weights: {_first_line(message)}"


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


def _first_line(error: object) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
