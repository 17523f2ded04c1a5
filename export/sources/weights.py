"""Read a checkpoint without running code from it, and load it into a network, key by key.

safetensors files hold numbers only. A ``.pt``/``.pth``/``.ckpt``/``.bin`` file is a pickle: only torch's restricted
unpickler reads it (``weights_only=True`` is always passed, so that no environment variable turns it off); a file that
it refuses is not read by a laxer one. torch does not check the CRC-32 of its zip entries, so that a flipped bit would
load without an error; the CRC-32 is checked here first.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normfold.export.errors import CheckpointError

__all__ = ["Checkpoint", "load_into", "read_checkpoint"]

#: Keys under which training frameworks store the weights in a checkpoint, in the order in which they are tried.
NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params", "ema")
#: Prefixes that wrappers (DataParallel, torch.compile, Lightning) put before every key.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
CONVERT = (
    "torch.save(network.state_dict(), 'weights.pt') or "
    "safetensors.torch.save_file(network.state_dict(), 'weights.safetensors')"
)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file by key."""

    tensors: Mapping[str, Tensor]
    #: sha256 of the bytes that the tensors were read from.
    sha256: str
    #: How the tensors were found, for the report.
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path, expected: Iterable[str] = ()) -> Checkpoint:
    """Read ``path``: safetensors, or a torch zip or legacy file of tensors.

    expected are the keys of the network; they choose between several state_dicts in one file. Raises CheckpointError
    where the file is missing, damaged, a pickle that needs code, or holds no state_dict.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1, cutoff=0.75)
        hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
        raise CheckpointError(f"no file of weights '{path}'{hint}") from None
    except OSError as error:
        raise CheckpointError(f"weights '{path}' cannot be read: {error.strerror}") from None
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        raise CheckpointError(f"weights '{path}' is an empty file")
    if path.suffix == ".safetensors" or _looks_like_safetensors(content):
        return Checkpoint(_read_safetensors(content, path), digest)
    if content.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"weights '{path}' is a Git LFS pointer, not the file itself: run `git lfs pull`")
    tensors, nest = _find_tensors(_read_torch(content, path), set(expected), path)
    notes = (f"the weights were found under '{nest}' in the checkpoint",) if nest else ()
    return Checkpoint(tensors, digest, notes)


def load_into(network: nn.Module, checkpoint: Checkpoint, path: Path) -> tuple[str, ...]:
    """Copy the checkpoint's tensors into ``network``; return notes on renamed keys.

    Raises CheckpointError, with similar keys, where keys are missing, unexpected or of another shape, and where a
    weight is NaN. Counters of seen batches (``num_batches_tracked``) may be missing: inference never reads them.
    """
    wanted = network.state_dict()
    tensors, notes = _without_prefix(checkpoint.tensors, set(wanted))
    missing = [k for k in wanted if k not in tensors and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in tensors if k not in wanted]
    shapes = [
        f"  {k}: the file has {list(tensors[k].shape)}, the network {list(wanted[k].shape)}"
        for k in wanted
        if k in tensors and tensors[k].shape != wanted[k].shape
    ]
    if missing or unexpected or shapes:
        raise CheckpointError(_mismatch(path, missing, unexpected, shapes, tensors, wanted))
    broken = [k for k, v in tensors.items() if v.is_floating_point() and bool(v.isnan().any())]
    if broken:
        raise CheckpointError(
            f"weights '{path}': {_some(broken)} hold NaN, so every answer of the network would be NaN"
        )
    network.load_state_dict(tensors, strict=False)
    return notes


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
    is_zip = content.startswith(b"PK")
    if is_zip:
        _check_zip(content, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user needs no warnings about pickle protocols
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unsafe(str(error), path)) from None
    except Exception as error:  # RuntimeError, EOFError, KeyError …: torch raises many types for a damaged file
        if not is_zip and not content.startswith(b"\x80"):
            raise CheckpointError(
                f"weights '{path}' is neither a safetensors nor a torch file (it begins with {content[:8]!r})"
            ) from None
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


def _find_tensors(value: Any, expected: set[str], path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the mapping of tensors that fits best, and the key that it was found under ("" for none)."""
    if isinstance(value, Tensor):
        raise CheckpointError(
            f"weights '{path}' holds one bare tensor {list(value.shape)}, not a state_dict; write {CONVERT}"
        )
    if not isinstance(value, Mapping):
        raise CheckpointError(f"weights '{path}' holds a {type(value).__name__}, not a state_dict; write {CONVERT}")
    found = [(nest, value[nest]) for nest in NESTS if _is_state_dict(value.get(nest))]
    if _is_state_dict(value):
        found.insert(0, ("", value))
    if not found:
        raise CheckpointError(f"weights '{path}' holds no state_dict; its keys are {_some([str(k) for k in value])}")

    def matches(tensors: Mapping[str, Tensor]) -> int:
        return len(expected & set(_without_prefix(tensors, expected)[0]))

    nest, tensors = max(found, key=lambda item: matches(item[1]))
    return dict(tensors), nest


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _without_prefix(tensors: Mapping[str, Tensor], wanted: set[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Remove the prefixes that a wrapper put before the network's keys, where that makes keys fit.

    1. Every key has a known prefix (DataParallel, torch.compile): the prefix is removed, repeatedly.
    2. The network is one attribute among others (Lightning keeps the loss beside it): the keys of that attribute are
       used if they hold the whole network; the other keys are left out and named in a note.
    """
    removed = ""
    current = dict(tensors)
    while current and not wanted & set(current):
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in current)), None)
        if prefix is None:
            return _one_attribute(tensors, wanted)
        removed += prefix
        current = {k.removeprefix(prefix): v for k, v in current.items()}
    return current, (f"'{removed}' was taken off the front of every key",) if removed else ()


def _one_attribute(tensors: Mapping[str, Tensor], wanted: set[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    needed = {k for k in wanted if not k.endswith("num_batches_tracked")}
    for prefix in dict.fromkeys(k.partition(".")[0] + "." for k in tensors if "." in k):
        inside = {
            k.removeprefix(prefix).removeprefix("_orig_mod."): v for k, v in tensors.items() if k.startswith(prefix)
        }
        if needed and needed <= set(inside):
            outside = [k for k in tensors if not k.startswith(prefix)]
            left = f"; {_some(outside)} are not part of the network and were left" if outside else ""
            return inside, (f"the network's keys were found behind '{prefix}'{left}",)
    return dict(tensors), ()


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
    same = [k for k in among if tensors[k].shape == like.shape]
    near = difflib.get_close_matches(key, same, n=1, cutoff=0.5) or difflib.get_close_matches(
        key, among, n=1, cutoff=0.7
    )
    return near[0] if near else None


def _some(names: list[str], shown: int = 5) -> str:
    text = ", ".join(f"'{n}'" for n in names[:shown])
    return f"{text} and {len(names) - shown} more" if len(names) > shown else text


def _first_line(error: object) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
