"""Describe the inputs of a network: names, datatypes and shapes, with named dimensions that stay dynamic.

    x=FP32[N,77,L]               N and L may be any size
    x=FP32[N:1..64, 77, L:5..]   N from 1 to 64, L from 5 up
    x=FP32[N,1,L:8..400:8]       L from 8 to 400 in steps of 8
    tokens=INT64[N,L]:0..999     values of random test inputs from 0 to 999 (for indices into an embedding)
    lengths=INT64[N]:1..L        values from 1 to the size of L (for lengths)
    t=FP32[]                     a single number

Dimensions of the same name have the same size everywhere.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.errors import InputSpecError
from normfold.protos.datatypes import DATATYPES, Datatype, by_dtype, by_name

__all__ = [
    "Dimension",
    "InputSpec",
    "dimensions",
    "parse_input",
    "parse_inputs",
    "random_inputs",
    "specs_of_samples",
    "with_ranges",
]

EXAMPLE = "--input 'x=FP32[N,77,L]'"
#: Datatypes that torch and onnxruntime's kernels for these networks both support.
SUPPORTED = ("FP32", "FP64", "FP16", "INT64", "INT32", "INT16", "INT8", "UINT8", "BOOL")
#: Largest number of elements of a tensor in a test or a trace (256 MiB of float32); a declared range may go beyond.
MAX_ELEMENTS = 1 << 26
#: The largest value of an input that only the size of a dimension limits.
UNLIMITED = (1 << 63) - 1


@dataclass(frozen=True)
class Dimension:
    """A named dimension that stays dynamic in the exported graph."""

    name: str
    #: Smallest size; None: not given, found by trying.
    low: int | None = None
    #: Largest size; None: no bound.
    high: int | None = None
    #: Distance from one size to the next, counted from ``low``; None: not given, found by trying.
    step: int | None = None

    def __str__(self) -> str:
        if not self.ranged:
            return self.name
        step = "" if self.step in (None, 1) else f":{self.step}"
        return f"{self.name}:{'' if self.low is None else self.low}..{'' if self.high is None else self.high}{step}"

    @property
    def ranged(self) -> bool:
        """Whether a smallest or a largest size is given."""
        return self.low is not None or self.high is not None

    def holds(self, size: int) -> bool:
        """Whether ``size`` is one of the declared sizes."""
        low = self.low or 1
        return low <= size <= (self.high or size) and (size - low) % (self.step or 1) == 0


@dataclass(frozen=True)
class InputSpec:
    """One input of the network."""

    name: str
    datatype: Datatype
    dims: tuple[int | Dimension, ...]
    #: Smallest and largest value of random test inputs (integers: both included); None: by datatype.
    values: tuple[int, int] | None = None
    #: The dimension whose size, less ``below``, limits the values too; "": none.
    limit: str = ""
    below: int = 0
    #: Whether random floats are drawn positive, |N(0, scale²)|.
    positive: bool = False

    def __str__(self) -> str:
        values = ""
        if self.values:
            low, high = self.values
            largest = f"{self.limit}{f'-{self.below}' if self.below else ''}" if high == UNLIMITED else high
            values = f":{low}..{largest}"
        return f"{self.name}={self.datatype.name}[{','.join(str(d) for d in self.dims)}]{values}"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape of this input where each named dimension has its size in ``sizes``."""
        return tuple(d if isinstance(d, int) else sizes[d.name] for d in self.dims)

    def drawn(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Return the smallest and the largest value of a random integer input at these sizes."""
        low, high = self.values or (0, 1)
        if not self.limit:
            return low, high
        return low, max(low, min(high, sizes[self.limit] - self.below, int(np.iinfo(self.datatype.dtype).max)))


def beyond(datatype: Datatype, numbers: Iterable[int]) -> tuple[int | None, np.iinfo[Any]]:
    """Return the first of ``numbers`` that an integer ``datatype`` does not hold, None if there is none; its limits."""
    whole = np.iinfo(datatype.dtype)
    return next((n for n in numbers if not whole.min <= n <= whole.max), None), whole


_INPUT = re.compile(
    r"\s*([^=\[\]]+?)\s*=\s*(\w+)\s*\[([^\[\]]*)\]\s*"
    r"(?::\s*(-?\d+)\s*\.\.\s*(?:(-?\d+)|([A-Za-z_]\w*)\s*(?:-\s*(\d+))?)\s*)?\Z"
)
_DIMENSION = re.compile(r"([A-Za-z_]\w*)(?:\s*:\s*(\d*)\s*\.\.\s*(\d*)\s*(?::\s*(\d+))?)?\Z")


def parse_input(text: str) -> InputSpec:
    """Read one ``name=DTYPE[dims]``. Raises InputSpecError, whose message shows an example.

    >>> str(parse_input("x=FP32[N:1..64, 77, L:5..]"))
    'x=FP32[N:1..64,77,L:5..]'
    """
    match = _INPUT.match(text)
    if match is None:
        raise InputSpecError(f"--input {text!r} cannot be read: expected NAME=DTYPE[dims], for example {EXAMPLE}")
    if re.search(r"(?<!\w)\d{20}", text):
        raise InputSpecError(f"--input '{text[:60]}…': it has a number of 20 digits or more")
    name, dtype, dims, low, high, limit, below = match.groups()
    if not re.fullmatch(r"[A-Za-z_][\w.:/-]*", name):
        raise InputSpecError(
            f"--input {text!r}: {name!r} is not a name for an input; use letters, digits and the signs _ . : / -"
        )
    if dtype.upper() not in SUPPORTED:
        raise InputSpecError(f"--input {text!r}: {_unknown_datatype(dtype)}")
    parts = [p.strip() for p in dims.split(",")] if dims.strip() else []
    if high is not None and int(low) > int(high):
        raise InputSpecError(f"--input {text!r}: the values {low}..{high} run backwards")
    values = None if low is None else (int(low), UNLIMITED if high is None else int(high))
    datatype = by_name(dtype.upper())
    if values is not None and datatype.dtype.kind == "f":
        raise InputSpecError(
            f"--input {text!r}: values {low}..{high or limit} are for integers and BOOL; give real inputs of "
            f"{datatype.name} with --sample"
        )
    if values is not None and datatype.dtype.kind in "iu":
        wrong, whole = beyond(datatype, [int(n) for n in (low, high) if n is not None])
        if wrong is not None:
            raise InputSpecError(
                f"--input {text!r}: {datatype.name} holds numbers from {whole.min} to {whole.max}, not {wrong}"
            )
    if datatype.name == "BOOL" and values not in (None, (0, 0), (0, 1), (1, 1)):
        raise InputSpecError(f"--input {text!r}: the values of BOOL are 0..1, 0..0 (always false) or 1..1")
    shape = tuple(_parse_dimension(p, text) for p in parts)
    return InputSpec(name, datatype, shape, values, limit or "", int(below or 0))


def parse_inputs(texts: Iterable[str]) -> tuple[InputSpec, ...]:
    """Read several inputs; a range that is given once applies to every dimension of that name.

    Raises InputSpecError for an input described twice and for two different ranges of one dimension.
    """
    specs = [parse_input(text) for text in texts]
    seen: dict[str, Dimension] = {}
    for spec in specs:
        if sum(s.name == spec.name for s in specs) > 1:
            raise InputSpecError(f"input '{spec.name}' is described twice")
        for d in spec.dims:
            if isinstance(d, Dimension):
                known = seen.get(d.name)
                if known is not None and d.ranged and known.ranged and known != d:
                    raise InputSpecError(f"dimension '{d.name}' has two ranges: {known} and {d}")
                if known is None or d.ranged:
                    seen[d.name] = d
    for spec in specs:
        if spec.limit and spec.limit not in seen:
            raise InputSpecError(
                f"the values of '{spec.name}' end at the size of {spec.limit}, but no input has a dimension "
                f"'{spec.limit}'"
            )
    return with_ranges(specs, seen)


def with_ranges(specs: Iterable[InputSpec], ranges: Mapping[str, Dimension]) -> tuple[InputSpec, ...]:
    """Return ``specs`` in which each dimension that ``ranges`` has by its name is the one there."""
    return tuple(
        replace(s, dims=tuple(d if isinstance(d, int) else ranges.get(d.name, d) for d in s.dims)) for s in specs
    )


def dimensions(specs: Sequence[InputSpec]) -> tuple[Dimension, ...]:
    """Return the distinct named dimensions of ``specs`` in the order of their first appearance."""
    return tuple({d.name: d for s in specs for d in s.dims if isinstance(d, Dimension)}.values())


def specs_of_samples(samples: Mapping[str, NDArray[Any]]) -> tuple[InputSpec, ...]:
    """Return the inputs that ``samples`` (name -> array) show: a first dimension ``N``, the batch, then fixed ones.

    Raises InputSpecError for an array that cannot be an input.
    """
    specs = []
    for name, array in samples.items():
        try:
            datatype = by_dtype(array.dtype)
        except (KeyError, TypeError):
            raise InputSpecError(f"the sample for '{name}' has dtype {array.dtype}, which no input takes") from None
        if datatype.name == "BYTES":
            raise InputSpecError(
                f"the sample for '{name}' is {array.dtype}{list(array.shape)}; expected an array of numbers"
            )
        specs.append(InputSpec(name, datatype, (Dimension("N"), *array.shape[1:]) if array.ndim else ()))
    return tuple(specs)


def random_inputs(
    specs: Sequence[InputSpec], sizes: Mapping[str, int], rng: np.random.Generator, scale: float = 1.0
) -> dict[str, NDArray[Any]]:
    """Draw one array for every input: floats from N(0, scale²), integers and booleans uniform over their values.

    Floats are the absolute value of that where the input is marked ``positive``.
    """
    drawn: dict[str, NDArray[Any]] = {}
    for spec in specs:
        shape, dtype = spec.shape(sizes), spec.datatype.dtype
        if spec.datatype.name == "BOOL":
            low, high = spec.drawn(sizes)
            drawn[spec.name] = np.asarray((rng.random(shape) < 0.5) & bool(high) | bool(low))
        elif dtype.kind == "f":
            normal = scale * rng.standard_normal(shape)
            drawn[spec.name] = np.asarray(np.abs(normal) if spec.positive else normal, dtype)
        else:
            low, high = spec.drawn(sizes)
            drawn[spec.name] = np.asarray(rng.integers(low, high, size=shape, endpoint=True), dtype)
    return drawn


def _parse_dimension(part: str, text: str) -> int | Dimension:
    if re.fullmatch(r"\d+", part):
        size = int(part)
        if size == 0 or size > MAX_ELEMENTS:
            raise InputSpecError(f"--input {text!r}: dimension {part} is not a size from 1 to {MAX_ELEMENTS}")
        return size
    if part in ("-1", "?", "None", ""):
        raise InputSpecError(
            f"--input {text!r}: give the dynamic dimension a name instead of {part!r}, for example {EXAMPLE}"
        )
    if re.fullmatch(r"\w+(x\w+)+", part) and any(p.isdigit() for p in part.split("x")):
        raise InputSpecError(
            f"--input {text!r}: dimensions are separated by commas: {','.join(part.split('x'))} instead of {part}"
        )
    match = _DIMENSION.match(part)
    if match is None:
        raise InputSpecError(
            f"--input {text!r}: {part!r} is neither a size, a name, nor a range such as L:5..400 or L:8..400:8"
        )
    name, *numbers = match.groups()
    low, high, step = (int(n) if n else None for n in numbers)
    low = step if low is None else low  # "L:..:8" means the multiples of 8
    if 0 in (low, high, step) or (low or 1) > (high or 1 << 62):
        raise InputSpecError(f"--input {text!r}: {part!r} is an empty range")
    return Dimension(name, low, high, step)


def _unknown_datatype(dtype: str) -> str:
    usual = {"FLOAT": "FP32", "FLOAT32": "FP32", "DOUBLE": "FP64", "FLOAT64": "FP64", "HALF": "FP16", "FLOAT16": "FP16"}
    usual |= {"LONG": "INT64", "INT": "INT64"}
    upper = dtype.upper()
    if upper in usual:
        return f"there is no datatype '{dtype}'; did you mean {usual[upper]}?"
    if upper in {d.name for d in DATATYPES}:
        return f"a network's input cannot be {upper}; it can be {', '.join(SUPPORTED)}"
    near = difflib.get_close_matches(upper, SUPPORTED, n=1)
    return f"there is no datatype '{dtype}'; " + (
        f"did you mean {near[0]}?" if near else f"there are {', '.join(SUPPORTED)}"
    )
