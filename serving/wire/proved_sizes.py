"""The sizes that a model was proved for, as JSON: in a model file's metadata, in ModelConfig and in ModelMetadata.

    {"schema": 1,
     "dimensions": {"L": {"low": 8, "high": null, "step": 1, "tried": [8, 32, 65]}},
     "inputs": {"x": ["N", 77, "L"]}}

A dimension has the sizes low, low + step, low + 2 * step, … up to ``high`` (null: without end). ``tried`` are the sizes
that the proof really ran. Inputs that name the same dimension have the same size there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: The key of the JSON text.
PROVED = "normfold.proved"
#: The key of a model file's metadata that says, in the words of the export, what became of the BatchNorms.
BATCHNORMS = "normfold.batchnorms"
#: The key beside it, with the value "1", where the server also answers other sizes.
ALLOWED = "normfold.allow_unproved_sizes"

SCHEMA = 1
#: The largest size that is accepted in the JSON text, and the largest number of dimensions, inputs and tried sizes.
LARGEST_SIZE, LARGEST_COUNT = 1 << 48, 4096


@dataclass(frozen=True)
class ProvedDimension:
    """The sizes of one dimension."""

    low: int
    #: None: without end.
    high: int | None
    step: int
    #: The sizes that the proof ran, in ascending order.
    tried: tuple[int, ...]

    def holds(self, size: int) -> bool:
        """Whether ``size`` is one of the sizes."""
        return self.low <= size <= (self.high or size) and (size - self.low) % self.step == 0

    @property
    def proved_for(self) -> str:
        """The smallest and the largest size that the proof ran, such as "8 to 4096"."""
        first, last = self.tried[0], self.tried[-1]
        return str(first) if first == last else f"{first} to {last}"

    def __str__(self) -> str:
        """The sizes in words, such as "from 8, in steps of 4"."""
        steps = "" if self.step == 1 else f", in steps of {self.step}"
        return f"from {self.low}{f' to {self.high}' if self.high else ''}{steps}"


@dataclass(frozen=True)
class ProvedSizes:
    """The sizes of every dimension by name, and the dimensions of every input by name."""

    dimensions: Mapping[str, ProvedDimension]
    #: A dimension is a fixed size, or a name.
    inputs: Mapping[str, tuple[int | str, ...]]

    @property
    def batch(self) -> str | None:
        """The dimension that is the first of every input: the rows. None where there is no such dimension."""
        first = {dims[0] if dims else None for dims in self.inputs.values()}
        name = first.pop() if len(first) == 1 else None
        return name if isinstance(name, str) else None

    def refusal(self, shapes: Mapping[str, Sequence[int]], batched: bool = False) -> str:
        """A sentence about the first size in ``shapes`` that was not proved; "" where all were.

        ``shapes`` has the shape of each input by name. In a ``batched`` model zero rows are always right.
        """
        seen: dict[str, tuple[int, str]] = {}
        for name, axis, named, size in self._sizes(shapes):
            if batched and axis == 0 and size == 0:
                continue
            other, of_input = seen.setdefault(named, (size, name))
            if size != other:
                return f"input {name!r}: {named} is {size}, but {other} in input {of_input!r}; both must be equal"
            dimension = self.dimensions[named]
            if not dimension.holds(size):
                return (
                    f"input {name!r}: {named} is {size}; this model takes {named} {dimension}; "
                    f"it was proved for {dimension.proved_for}"
                )
        return ""

    def beyond(self, shapes: Mapping[str, Sequence[int]]) -> str:
        """A sentence about the first size in ``shapes`` above the largest that the proof ran; "" for no such size.

        The number of rows is passed over: a proof of a few rows says enough about many.
        """
        for name, _, named, size in self._sizes(shapes):
            if named != self.batch and size > self.dimensions[named].tried[-1]:
                return f"input {name!r}: {named} is {size}; it was proved for {self.dimensions[named].proved_for}"
        return ""

    def _sizes(self, shapes: Mapping[str, Sequence[int]]) -> list[tuple[str, int, str, int]]:
        """Input, axis, dimension and size, for every named dimension of the inputs in ``shapes``."""
        return [
            (name, axis, named, size)
            for name, dims in self.inputs.items()
            if len(shapes.get(name, ())) == len(dims)
            for axis, (named, size) in enumerate(zip(dims, shapes.get(name, ()), strict=True))
            if isinstance(named, str)
        ]


def parse(text: str) -> ProvedSizes:
    """The sizes that the JSON ``text`` holds. Raises ValueError with a sentence about what is wrong."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(content, dict) or set(content) != {"schema", "dimensions", "inputs"}:
        raise ValueError("it must be an object with schema, dimensions and inputs")
    if content["schema"] != SCHEMA or isinstance(content["schema"], bool):
        raise ValueError(f"its schema is {str(content['schema'])[:20]}; this program reads schema {SCHEMA}")
    dimensions = {name: _dimension(name, value) for name, value in _entries(content, "dimensions")}
    inputs = {name: _dims(name, value, dimensions) for name, value in _entries(content, "inputs")}
    return ProvedSizes(dimensions, inputs)


def _entries(content: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    value = content[key]
    if not isinstance(value, dict) or len(value) > LARGEST_COUNT:
        raise ValueError(f"{key} must be an object with at most {LARGEST_COUNT} entries")
    return list(value.items())


def _dimension(name: str, value: Any) -> ProvedDimension:
    shown = f"dimension {name[:40]!r}"
    if not isinstance(value, dict) or set(value) != {"low", "high", "step", "tried"}:
        raise ValueError(f"{shown} must be an object with low, high, step and tried")
    low, high, step, tried = (value[key] for key in ("low", "high", "step", "tried"))
    if not isinstance(tried, list) or not 0 < len(tried) <= LARGEST_COUNT:
        raise ValueError(f"{shown}: tried must be a list of 1 to {LARGEST_COUNT} sizes")
    if not all(_is_size(size) for size in (low, step, *([] if high is None else [high]), *tried)):
        raise ValueError(f"{shown}: every size must be a whole number from 1 to {LARGEST_SIZE}")
    dimension = ProvedDimension(low, high, step, tuple(sorted(tried)))
    if not all(dimension.holds(size) for size in tried):
        raise ValueError(f"{shown}: a size in tried is not {dimension}")
    return dimension


def _dims(name: str, value: Any, dimensions: Mapping[str, ProvedDimension]) -> tuple[int | str, ...]:
    if not isinstance(value, list) or len(value) > LARGEST_COUNT:
        raise ValueError(f"input {name[:40]!r} must be a list of at most {LARGEST_COUNT} sizes and names of dimensions")
    for each in value:
        if not _is_size(each) and not (isinstance(each, str) and each in dimensions):
            raise ValueError(f"input {name[:40]!r}: {str(each)[:40]!r} is neither a size nor a dimension")
    return tuple(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIZE
