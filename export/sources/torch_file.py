"""Read a torch file without running code from it.

A ``.pt``/``.pth``/``.ckpt``/``.bin`` file is a pickle: only torch's restricted unpickler reads it
(``weights_only=True`` is always passed, so that no environment variable turns it off). torch does not check the CRC-32
of its zip entries, so that a flipped bit would load without an error; the CRC-32 is checked here first.

Checkpoints often hold more than numbers: the arguments of the training, the best score as a NumPy number. torch refuses
such a file. It is read a second time, by the same unpickler, with each class and function that it names replaced by one
of this module that does nothing: the objects are left out, and nothing of theirs is imported or called.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from normfold.export.errors import CheckpointError
from normfold.export.user_code import first_line

__all__ = ["CONVERT", "TorchFile", "read_torch"]

CONVERT = (
    "torch.save(network.state_dict(), 'weights.pt') or safetensors.torch.save_model(network, 'weights.safetensors')"
)


@dataclass(frozen=True)
class TorchFile:
    """The content of a file, without the objects that only their own code could make."""

    value: Any
    #: The classes and functions of what was left out: "argparse.Namespace".
    left_out: tuple[str, ...] = ()
    #: The error for a file that turns out to hold no weights without them.
    refusal: CheckpointError | None = None


class _Nothing:
    """In the place of a NumPy number, array or type."""

    def __new__(cls, *arguments: object) -> _Nothing:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...


class _Entries:
    """In the place of any other class or function: makes a mapping, the one thing that torch lets a file fill.

    What the file says of a dict of another class is then still there; attributes of an object are in no entry.
    """

    def __new__(cls, *arguments: object) -> Counter[Any]:  # type: ignore[misc]
        return Counter()


def read_torch(content: bytes, path: Path) -> TorchFile:
    """Read a torch zip or legacy file. Raises CheckpointError where it is damaged, another kind, or needs code."""
    if content.startswith(b"PK"):
        _check_zip(content, path)
    elif not content.startswith(b"\x80"):  # every pickle since 2003 begins so
        known = "a NumPy array" if content.startswith(b"\x93NUMPY") else f"it begins with {content[:8]!r}"
        raise CheckpointError(
            f"weights '{path}' is neither a safetensors nor a torch file ({known}); write the network's weights with "
            f"{CONVERT}"
        )
    try:
        return TorchFile(_load(content))
    except pickle.UnpicklingError as error:
        return _without_objects(content, CheckpointError(_unsafe(str(error), path)))
    except Exception as error:  # RuntimeError, EOFError, KeyError …: torch raises many types for a damaged file
        raise CheckpointError(f"weights '{path}' cannot be read: {first_line(error)}") from None


def _load(content: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user needs no warnings about pickle protocols
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _without_objects(content: bytes, refusal: CheckpointError) -> TorchFile:
    """Read what torch refused with its objects left out. Raises ``refusal`` where it is refused in this way too.

    torch goes on refusing files that name what is in ``os`` and ``sys``.
    """
    try:
        names = sorted(get_unsafe_globals_in_checkpoint(io.BytesIO(content)))
        with safe_globals([(_Nothing if n.startswith("numpy.") else _Entries, n) for n in names]):
            return TorchFile(_load(content), tuple(names), refusal)
    except Exception:  # a legacy file, an instruction that torch does not know, an object that is filled as a list …
        raise refusal from None


def _check_zip(content: bytes, path: Path) -> None:
    """Refuse damaged, compressed and TorchScript archives. torch does not compress, so a compressed file is suspect."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _refuse_torchscript([e.filename for e in entries], path)
            if entries and all(e.filename.endswith(".npy") for e in entries):
                raise CheckpointError(
                    f"weights '{path}' is a NumPy archive, not a torch file; write torch.save({{k: torch.from_numpy(v) "
                    f"for k, v in numpy.load('{path.name}').items()}}, 'weights.pt')"
                )
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
    return f"weights '{path}' is not a file of weights: {first_line(message)}"
