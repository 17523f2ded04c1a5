"""Inspects a ``torch.export`` program (``.pt2``) before it is opened, because opening it could run code.

``torch.export.load`` is not safe: it resolves operators by dotted names below ``torch``, passes size expressions to
``sympify``, uses the unrestricted unpickler, imports modules, and writes names and guards into Python code that it
executes. So the archive is checked first:

- torch's reader finds the same entries in it as Python's reader;
- the entries are intact and uncompressed;
- the texts of its description are of known forms (``program_texts.py``);
- the restricted unpickler can read every entry that torch could take for a pickle.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from normfold.export.errors import SourceError
from normfold.export.sources.program_texts import faults

__all__ = ["inspect_program"]

#: Entries that torch reads as text, and nothing else does: marks of the format, and files of the user's own.
_PLAIN = re.compile(
    r"(archive_(format|version)|version|byteorder|\.format_version|\.storage_alignment)\Z|\.data/|extra(_files)?/"
)
#: Entries that torch reads as JSON: any in the folder of the models, whatever its name.
_DESCRIPTION = re.compile(r"\Amodels/|\.json\Z")
_CODE = re.compile(r"\.(so|dll|dylib|cpp|py|cubin|o)\Z|(custom|opaque)_obj|aotinductor", re.IGNORECASE)


def inspect_program(content: bytes, path: Path) -> None:
    """Raise SourceError for an archive that is damaged or that could run code when it is opened."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            stored = all(e.compress_type == zipfile.ZIP_STORED for e in entries)
            if not stored or sum(e.file_size for e in entries) > len(content):
                raise SourceError(f"'{path}' is compressed; torch.export.save writes no such file")
            damaged = archive.testzip()
            if damaged is not None:
                raise SourceError(f"'{path}' is damaged: the CRC of its entry '{damaged}' does not match")
            names = [e.filename.lower() for e in entries]  # torch finds an entry in either case
            if len(set(names)) < len(names):
                raise SourceError(f"'{path}' holds two entries that differ only in upper and lower case, or not at all")
            records = {n: e for n, e in _as_torch_reads(content, archive, path).items() if not _PLAIN.match(n)}
            if code := next(filter(_CODE.search, records), None):
                raise SourceError(f"'{path}' holds compiled or custom code ('{code}'), which is not opened")
            described = {n: json.loads(archive.read(e).decode()) for n, e in records.items() if _DESCRIPTION.search(n)}
            numbers = _numbers(described)
            for name, entry in records.items():
                if name.lower() not in numbers and name not in described:
                    _inspect_pickle(name, archive.read(entry), path)
        for value in described.values():
            for fault in faults(value):
                raise SourceError(f"'{path}' {fault}; it was not opened")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise SourceError(f"'{path}' is not a whole torch.export program: {error}") from None


def _as_torch_reads(content: bytes, archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by torch's names, without the folder that holds them all.

    A file can be two archives: Python looks for the list of entries before the end of the file, torch where the end
    says that it is.
    """
    entries = archive.infolist()
    try:
        reader = torch._C.PyTorchFileReader(io.BytesIO(content))
        names = reader.get_all_records()
    except RuntimeError:  # written by torch 2.7 or older: without a folder; torch reads it by Python's reader, too
        return {e.filename: e for e in entries}
    records = {e.filename.partition("/")[2]: e for e in entries}
    same = sorted(names) == sorted(records) and len(records) == len(entries)
    if not same or any(reader.get_record(name) != archive.read(entry) for name, entry in records.items()):
        raise SourceError(f"'{path}' holds other entries for torch than for Python; it was not opened")
    return records


def _numbers(described: Mapping[str, Any]) -> set[str]:
    """Return the entries that torch reads as the numbers of a tensor, never as a pickle; in lower case.

    Only such an entry may begin with any byte. A configuration beside the entries names each, with ``use_pickle``.
    """
    raw: set[str] = set()
    pickled: set[str] = set()
    for value in described.values():
        for payload in _payloads(value):
            name = str(payload["path_name"]).lower()
            (raw if payload.get("use_pickle") is False else pickled).add(name)
    plain = {name for name in raw - pickled if re.fullmatch(r"(weight|tensor)_\d+", name)}
    return {f"data/{'weights' if name.startswith('weight') else 'constants'}/{name}" for name in plain}


def _payloads(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every description of an entry in a JSON value."""
    if isinstance(value, dict) and "path_name" in value:
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _payloads(inner)


def _inspect_pickle(name: str, record: bytes, path: Path) -> None:
    if not record:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user needs no warnings about pickle protocols
            torch.load(io.BytesIO(record), map_location="cpu", weights_only=True)
    except Exception:
        raise SourceError(
            f"'{path}' holds a pickle that runs code, or no pickle ('{name}'); it was not opened"
        ) from None
