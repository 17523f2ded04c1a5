"""Opens the .npy and .npz files that a person names, and says in plain words why another file is neither."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.plain_file import require_plain

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile
    from numpy.typing import NDArray

#: How a .npy file, and a zip file such as .npz, begins.
_NPY, _ZIP = b"\x93NUMPY", b"PK"
#: What NumPy and zipfile raise, besides OSError, for a file that is damaged, or whose header claims too much; an array
#: of an .npz file is only read when it is asked for.
DAMAGED = (ValueError, EOFError, MemoryError, OverflowError, RuntimeError, zipfile.BadZipFile, zlib.error)


def open_array_file(path: Path) -> NDArray[Any] | NpzFile:
    """The array of a .npy file, or an open .npz file. Raises OSError, or ValueError with the reason for another file.

    Arrays of objects are refused: here in a .npy file, by reading them in an .npz file.
    """
    import numpy as np

    require_plain(path)
    with path.open("rb") as file:
        begin = file.read(len(_NPY))
    if not begin:
        raise ValueError("it is empty")
    if begin != _NPY and not begin.startswith(_ZIP):
        raise ValueError(f"it begins with {begin!r}; write it with np.save or np.savez")
    try:
        if begin != _NPY and not _holds_arrays(path):
            raise ValueError("it is a zip file of other things than arrays, as torch.save writes; use np.savez")
        loaded: NDArray[Any] | NpzFile = np.load(path, allow_pickle=False)
    except DAMAGED as error:
        raise ValueError(why_unread(error)) from None
    return loaded


def why_unread(error: Exception) -> str:
    """The reason in an error of NumPy, for the end of a sentence."""
    if "allow_pickle" in str(error):
        return "it holds objects; save numbers, such as x.astype('float32')"
    if isinstance(error, (MemoryError, OverflowError)):
        return f"it says that it holds more than fits into memory ({error})"
    return str(error)


def _holds_arrays(path: Path) -> bool:
    with zipfile.ZipFile(path) as members:
        return all(name.endswith(".npy") for name in members.namelist())
