"""Read the user's own inputs from ``.npy``, ``.npz`` and ``.safetensors`` files; nothing in them is executed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.array_file import open_array_file, why_unread
from normfold.counting import counted
from normfold.export.errors import InputSpecError
from normfold.export.inputs.specs import MAX_ELEMENTS, Dimension, InputSpec, beyond

__all__ = ["SampleFile", "fit", "read_sample", "sample_sizes"]

#: Largest size of one sample file in bytes, unpacked: the elements that an input may have, in float64.
MAX_BYTES = 8 * MAX_ELEMENTS

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class SampleFile:
    """The arrays of one sample file by input name; the array of a ``.npy`` file has the name ""."""

    name: str
    arrays: Mapping[str, NDArray[Any]]
    #: NaN and infinity are meant.
    allow_nonfinite: bool = False


def read_sample(path: Path | SampleFile, allow_nonfinite: bool = False) -> SampleFile:
    """Read one file, or take arrays in memory.

    Raises InputSpecError if the file is missing, damaged, of another format, or holds pickled objects.
    """
    if isinstance(path, SampleFile):
        return replace(path, allow_nonfinite=allow_nonfinite)
    if not path.is_file():
        raise InputSpecError(f"no sample file '{path}'")
    _refuse_large(path)
    try:
        if path.suffix in (".npy", ".npz"):
            opened = open_array_file(path)
            if isinstance(opened, np.ndarray):
                return SampleFile(path.name, {"": opened}, allow_nonfinite)
            with opened as archive:
                return SampleFile(path.name, {name: archive[name] for name in archive.files}, allow_nonfinite)
        if path.suffix == ".safetensors":
            from safetensors.numpy import load

            return SampleFile(path.name, load(path.read_bytes()), allow_nonfinite)
    except Exception as error:  # ValueError for objects, OSError, BadZipFile, EOFError, SafetensorError
        raise InputSpecError(f"the sample '{path}' cannot be read: {why_unread(error)}") from None
    raise InputSpecError(f"the sample '{path}' has no known format; expected .npy, .npz or .safetensors")


def _refuse_large(path: Path) -> None:
    """Raise InputSpecError for a file whose unpacked size is larger than any sample needs."""
    size = path.stat().st_size
    if path.suffix == ".npz" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(entry.file_size for entry in archive.infolist()))
    if size > MAX_BYTES:
        raise InputSpecError(
            f"the sample '{path}' holds {size:,} bytes; a sample is a few inputs, of at most {MAX_BYTES:,} bytes"
        )


def fit(sample: SampleFile, specs: Sequence[InputSpec]) -> Arrays:
    """Return the sample's arrays by input name, cast within their kind, with a batch axis added where it is missing.

    Raises InputSpecError for names and shapes that do not fit, and for NaN and infinity where they are not allowed.
    """
    arrays = dict(sample.arrays)
    if "" in arrays and len(specs) == 1:
        arrays = {specs[0].name: arrays[""]}
    names = [s.name for s in specs]
    if set(arrays) != set(names):
        has = ", ".join(repr(n) for n in arrays if n) or "one unnamed array"
        raise InputSpecError(f"sample '{sample.name}' holds {has}; the inputs are {', '.join(map(repr, names))}")
    fitted = {s.name: _cast(arrays[s.name], s, sample.name) for s in specs}
    sample_sizes(fitted, specs, sample.name)
    if not sample.allow_nonfinite:
        for name, array in fitted.items():
            _refuse_nonfinite(array, name, sample.name)
    return fitted


def _refuse_nonfinite(array: NDArray[Any], name: str, file: str) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    kind = "NaN" if np.isnan(array).any() else "infinity"
    count = int((~np.isfinite(array)).sum())
    raise InputSpecError(
        f"sample '{file}': '{name}' holds {kind} ({count:,} of {counted(array.size, 'number')}, as {array.dtype}), so "
        "its answer proves nothing. Replace them, or give --allow-nonfinite if the network is meant to take them"
    )


def sample_sizes(arrays: Mapping[str, NDArray[Any]], specs: Sequence[InputSpec], name: str) -> dict[str, int]:
    """Return the size that each named dimension has in ``arrays``. Raises InputSpecError where a shape does not fit."""
    sizes: dict[str, int] = {}
    for spec in specs:
        shape = arrays[spec.name].shape
        wanted = f"[{', '.join(str(d) for d in spec.dims)}]"
        if len(shape) != len(spec.dims):
            raise InputSpecError(f"sample '{name}': '{spec.name}' has shape {list(shape)}, the input {wanted}")
        for axis, (d, size) in enumerate(zip(spec.dims, shape, strict=True)):
            if isinstance(d, int):
                fits, want = size == d, str(d)
            else:
                known = sizes.setdefault(d.name, size)
                fits = known == size and d.holds(size)
                want = str(d) if known == size else f"{known} (the size of {d.name} elsewhere)"
            if not fits:
                raise InputSpecError(
                    f"sample '{name}': '{spec.name}' has shape {list(shape)}, the input {wanted}: "
                    f"dimension {axis} is {size}, expected {want}"
                )
    return sizes


def _cast(array: NDArray[Any], spec: InputSpec, name: str) -> NDArray[Any]:
    """Cast between float widths and between integer widths; add the batch axis to a single example."""
    wanted = spec.datatype.dtype
    if array.dtype != wanted:
        same_kind = array.dtype.kind == wanted.kind or {array.dtype.kind, wanted.kind} <= {"i", "u"}
        if not same_kind:
            raise InputSpecError(
                f"sample '{name}': '{spec.name}' holds {array.dtype}, the input takes {spec.datatype.name}"
            )
        _refuse_beyond(array, spec, name)
        with np.errstate(over="ignore"):
            array = array.astype(wanted)
    if array.ndim == len(spec.dims) - 1 and spec.dims and isinstance(spec.dims[0], Dimension):
        array = array[None]
    return np.asarray(array, order="C")


def _refuse_beyond(array: NDArray[Any], spec: InputSpec, name: str) -> None:
    """Raise InputSpecError where an integer is none that the input's datatype holds: cast, it would be another one."""
    if array.dtype.kind not in "iu" or not array.size:
        return
    wrong, whole = beyond(spec.datatype, (int(array.min()), int(array.max())))
    if wrong is not None:
        raise InputSpecError(
            f"sample '{name}': '{spec.name}' holds {wrong}, and the input takes {spec.datatype.name}, from {whole.min} "
            f"to {whole.max}"
        )
