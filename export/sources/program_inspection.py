"""What is looked at in a ``torch.export`` program (``.pt2``) before it is opened, because opening it could run code.

``torch.export.load`` is not safe: it resolves operators by dotted names below ``torch``, passes size expressions to
``sympify``, falls back to the unrestricted unpickler, and writes names and guards into Python code that it executes. So
the archive is checked first: its entries are intact and uncompressed, operators are in torch's own operator namespaces,
size expressions and guards are plain arithmetic, names are names, the restricted unpickler reads every pickle, and
nothing is compiled code.
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
from normfold.export.sources.program_guards import is_guard

__all__ = ["inspect_program"]

_OPERATOR = re.compile(
    r"(torch\.ops\.(aten|prims|higher_order|_caffe2)\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.sym_\w+)\Z"
)
#: Functions in torch's size expressions: those of SymPy, and torch's own functions of integers.
_FUNCTIONS = {
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Abs", "floor", "ceiling"),
    *("FloorDiv", "CeilDiv", "CleanDiv", "IntTrueDiv", "PythonMod", "ModularIndexing", "Where", "PowByNatural"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Equality", "Unequality"),
    *("StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
}


#: Every other text in the description of a program: a name, a dotted path, a device, a version. Nothing is called,
#: assigned, quoted or continued on another line, wherever torch writes it into code.
_NAME = re.compile(r"[\w.:/+<>*@ -]*\Z")
#: Texts that torch keeps as text: where a node comes from, and texts that are arguments of operators.
_TEXTS = {"metadata", "as_string", "as_strings"}
#: Descriptions of nested arguments, as JSON in a text.
_SPECS = {"in_spec", "out_spec", "context"}


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
            numbers = _numbers({e.filename: archive.read(e) for e in entries if e.filename.endswith(".json")})
            for entry in entries:
                if entry.filename.partition("/")[2].lower() not in numbers:
                    _inspect_entry(entry.filename, archive.read(entry), path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise SourceError(f"'{path}' is not a whole torch.export program: {error}") from None


def _numbers(configs: Mapping[str, bytes]) -> set[str]:
    """Return the entries that torch reads as the numbers of a tensor, never as a pickle; in lower case.

    Only such an entry may begin with any byte. A configuration beside the entries names each, with ``use_pickle``.
    """
    raw: set[str] = set()
    pickled: set[str] = set()
    for content in configs.values():
        for payload in _payloads(json.loads(content)):
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


def _inspect_entry(name: str, content: bytes, path: Path) -> None:
    if re.search(r"\.(so|dll|dylib|cpp|py|cubin|o)\Z|custom_obj|aotinductor", name):
        raise SourceError(f"'{path}' holds compiled or custom code ('{name}'), which is not opened")
    if name.endswith(".json"):
        for key, value in _strings(json.loads(content)):
            if key in ("target", "as_operator") and not _OPERATOR.match(value) and "." in value:
                raise SourceError(f"'{path}' calls '{value}', which is no torch operator; it was not opened")
            if key == "expr_str" and not _is_arithmetic(value):
                raise SourceError(
                    f"'{path}' holds the size expression {value!r}, which is not arithmetic; it was not opened"
                )
            if key == "guards_code" and not is_guard(value):
                raise SourceError(f"'{path}' holds the guard {value!r}, which is not arithmetic; it was not opened")
            if key not in ("expr_str", "guards_code") and not _NAME.match(value) and "/extra/" not in name:
                raise SourceError(f"'{path}' holds the name {value[:80]!r}, which is none; it was not opened")
    elif content.startswith((b"PK", b"\x80")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the user needs no warnings about pickle protocols
                torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:
            raise SourceError(f"'{path}' holds a pickle that runs code ('{name}'); it was not opened") from None


def _is_arithmetic(expression: str) -> bool:
    """Whether ``sympify`` can only do arithmetic on this text: known functions, no attribute access."""
    bare = re.sub(r"Symbol\('\w+'", "Symbol(", expression)
    called = set(re.findall(r"([A-Za-z_]\w*)\s*\(", bare))
    return (
        called <= _FUNCTIONS
        and re.fullmatch(r"[\w\s+*/%()<>=!,&|~-]*(\d\.\d[\w\s+*/%()<>=!,&|~-]*)*", bare) is not None
        and ("__" not in bare)
    )


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every string of a JSON value with its key, and every key; texts that torch keeps as text are left out."""
    if isinstance(value, str) and key in _SPECS and value[:1] in ("[", "{", '"'):
        yield from _strings(json.loads(value), "context")
    elif isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for k, v in value.items():
            if key != "range_constraints":
                yield "", k
            if k not in _TEXTS:
                yield from _strings(v, k)
