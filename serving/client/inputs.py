"""From what a caller passes as inputs to arrays by name; each ValueError names the input and the cure."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normfold.protos.datatypes import Datatype, by_dtype, by_name
from normfold.serving.client.arguments import checked_text
from normfold.serving.client.metadata import ModelMetadata

Array = NDArray[Any]
Inputs = ArrayLike | Mapping[str, ArrayLike]

#: The files of NumPy keep bfloat16 as two bytes without a type.
SAVED_BFLOAT16 = np.dtype("V2")
#: The most inputs of a model that a message lists.
_SHOWN = 8
#: The most dimensions of an array.
_DIMENSIONS = 64
#: A message shows the digits of an integer with at most this many bits.
_LONGEST = 256


def needs_metadata(inputs: Inputs) -> bool:
    """Whether the server must be asked first: for the name of the only input, or for the datatype of plain numbers.

    Raises ValueError for None, which is no input at all.
    """
    values = [*inputs.values()] if isinstance(inputs, Mapping) else [inputs]
    for value in values:
        if value is None:
            raise ValueError("the input is None; give an array of numbers, or a dict of arrays by input name")
    return not isinstance(inputs, Mapping) or any(_is_plain(value) for value in values)


def by_input_name(inputs: Inputs, metadata: ModelMetadata | None) -> dict[str, tuple[Array, Datatype]]:
    """The array and the datatype to send for each input. Raises ValueError.

    An array without a name is for the model's only input. An array keeps its own dtype; numbers and lists, which have
    none, get the model's. ``metadata`` may be None where ``needs_metadata`` is false.
    """
    if not isinstance(inputs, Mapping):
        assert metadata is not None
        inputs = {_only(metadata): inputs}
    found = {}
    for name, value in inputs.items():
        if not isinstance(name, str):
            raise ValueError(f"inputs: the key {name!r} is not the name of an input; names are str")
        checked_text("input", name)
        declared = declared_datatype(name, metadata)
        found[name] = as_declared(name, value, declared) if declared and _is_plain(value) else as_given(name, value)
    return found


def as_given(name: str, value: ArrayLike) -> tuple[Array, Datatype]:
    """``value`` as an array of its own dtype, BYTES as ``bytes`` objects, BF16 as its bits. Raises ValueError."""
    array = _read(name, value)
    try:
        datatype = by_name("BF16") if array.dtype == SAVED_BFLOAT16 else by_dtype(array.dtype)
    except KeyError:
        raise ValueError(
            f"input {name!r} has dtype {array.dtype}, which the protocol has no name for; "
            "use bool, an integer, float16, float32, float64, bytes or str"
        ) from None
    if datatype.name == "BYTES":
        return _bytes(name, array), datatype
    return (array.view(datatype.dtype) if datatype.name == "BF16" else array), datatype


def as_declared(name: str, value: Any, declared: str) -> tuple[Array, Datatype]:
    """``value``, numbers or text without a dtype of their own, in the datatype ``declared``. Raises ValueError.

    Integers and booleans must be representable exactly; floats are rounded, but must not become infinite.
    """
    datatype, array = by_name(declared), _read(name, value)
    if declared == "BYTES":
        if array.dtype.kind not in "SUTO" and array.size:  # an empty list has no text from which to know it
            raise ValueError(f"input {name!r} is text (BYTES), not numbers")
        return _bytes(name, array), datatype
    if declared == "BF16":
        raise ValueError(f"input {name!r} is BF16: give an array with the dtype ml_dtypes.bfloat16 (a .npy file)")
    if datatype.dtype.kind in "iu" and array.dtype.kind in "fO" and (integers := _integers(value)) is not None:
        return _within(name, integers, datatype), datatype
    if array.dtype.kind == "O":
        array = _floats(name, array, declared)
    if array.dtype.kind not in "biuf":
        held = {"c": "complex numbers", "M": str(array.dtype), "m": str(array.dtype)}.get(array.dtype.kind, "text")
        raise ValueError(f"input {name!r} is not {declared}: it holds {held}")
    with np.errstate(all="ignore"):
        cast = array.astype(datatype.dtype)
    wrong = cast != array if datatype.dtype.kind != "f" else np.isinf(cast) & np.isfinite(array)
    if np.any(wrong):
        raise ValueError(f"input {name!r} is not {declared}: it holds {array[wrong].ravel()[0]}")
    return cast, datatype


def declared_datatype(name: str, metadata: ModelMetadata | None) -> str:
    """The datatype of an input of the model; "" where it is not known, or is none of the protocol's."""
    declared = next((t.datatype for t in metadata.inputs if t.name == name), "") if metadata else ""
    try:
        return by_name(declared).name
    except KeyError:
        return ""


def _is_plain(value: Any) -> bool:
    """Whether ``value`` has no dtype of its own."""
    return isinstance(value, (list, tuple, bool, int, float, str, bytes))


def _only(metadata: ModelMetadata) -> str:
    """The name of the only input of a model. Raises ValueError where it has several, or the server names none."""
    if len(metadata.inputs) == 1:
        return metadata.inputs[0].name
    if not metadata.inputs:
        raise ValueError(
            f"the server does not say which inputs model {metadata.name!r} has; give a dict of arrays by name: "
            "{'x': …}"
        )
    shown = ", ".join(map(str, metadata.inputs[:_SHOWN]))
    raise ValueError(
        f"model {metadata.name!r} has {len(metadata.inputs)} inputs: {shown}; give a dict of arrays by name: "
        f"{{{metadata.inputs[0].name!r}: …}}"
    )


def _read(name: str, value: Any) -> Array:
    if _has_mask(value):
        raise ValueError(f"input {name!r} is a masked array, and a mask cannot be sent; fill it: x.filled(0)")
    try:
        array = np.asarray(value)
        if array.dtype.kind in "SU" and (isinstance(value, (str, bytes)) or not hasattr(value, "dtype")):
            return np.asarray(value, object)  # NumPy's own text ends before the NULs at its end, and 1 becomes "1"
        return array
    except UnicodeDecodeError:  # bytes beside str, which NumPy would make one type
        return np.asarray(value, object)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise ValueError(f"input {name!r} is not an array: {error}") from None
        raise ValueError(f"input {name!r} is not an array: its rows have different lengths; pad them") from None
    except (TypeError, RuntimeError) as error:  # torch's, for a tensor on a GPU or one with a gradient
        raise ValueError(f"input {name!r} cannot be read as an array: {error}") from None


def _has_mask(value: Any, depth: int = 0) -> bool:
    """Whether ``value``, or a list in it at any depth that an array can have, has a masked array."""
    if not isinstance(value, (list, tuple)):
        return isinstance(value, np.ma.MaskedArray)
    if any(issubclass(kind, (list, tuple, np.ma.MaskedArray)) for kind in set(map(type, value))):
        return depth < _DIMENSIONS and any(_has_mask(row, depth + 1) for row in value)
    return False


def _integers(value: Any) -> Array | None:
    """``value``, which has no dtype, as Python's integers.

    None where it has one, where it holds anything but whole numbers, and where all of these are floats.
    NumPy makes floats of integers on both sides of 2**63, and of those beside floats, and rounds them.
    """
    if hasattr(value, "dtype"):
        return None
    array = np.asarray(value, object)
    elements = array.ravel().tolist()
    if not any(isinstance(element, Integral) for element in elements) or not all(map(_is_whole, elements)):
        return None
    return np.array([int(element) for element in elements], object).reshape(array.shape)


def _is_whole(element: Any) -> bool:
    if isinstance(element, (float, np.floating)):
        return float(element).is_integer()
    return isinstance(element, (Integral, np.bool_))


def _within(name: str, integers: Array, datatype: Datatype) -> Array:
    """``integers`` of Python in ``datatype``. Raises ValueError for one that does not fit."""
    bounds = np.iinfo(datatype.dtype)
    for element in integers.flat:
        if not bounds.min <= element <= bounds.max:
            raise ValueError(f"input {name!r} is not {datatype.name}: it holds {_digits(element)}")
    return integers.astype(datatype.dtype)


def _floats(name: str, objects: Array, declared: str) -> Array:
    """The numbers of Python in ``objects`` as float64, text as it is. Raises ValueError for anything else.

    NumPy keeps a list as objects if one of its integers has more than 64 bits.
    """
    if not all(isinstance(element, (Integral, float, np.floating)) for element in objects.flat):
        _bytes(name, objects)  # raises, except for text
        return objects
    try:
        return objects.astype(np.float64)
    except OverflowError:
        largest = max((int(element) for element in objects.flat if isinstance(element, Integral)), key=abs)
        raise ValueError(f"input {name!r} is not {declared}: it holds {_digits(largest)}") from None


def _digits(integer: int) -> str:
    """The digits of ``integer``; of one with very many, of which Python gives none, how many bits it has."""
    bits = integer.bit_length()
    return str(integer) if bits <= _LONGEST else f"an integer of {bits} bits"


def _bytes(name: str, array: Array) -> Array:
    """Text as an array of ``bytes`` objects. Raises ValueError for an element that is not text."""
    given = array.ravel().tolist()
    if any(element is None for element in given):
        raise ValueError(f"input {name!r} holds None (null); a tensor has a value in every place")
    elements = np.empty(array.size, object)
    for position, element in enumerate(given):
        if isinstance(element, str):
            elements[position] = checked_text(f"input {name!r}: the text", element).encode()
        elif isinstance(element, (bytes, bytearray, memoryview)):
            elements[position] = bytes(element)
        else:
            raise ValueError(
                f"input {name!r} is an array of objects: it holds {type(element).__name__}, and only text can be sent "
                "as objects. For numbers use x.astype('float32'), with rows of one length"
            )
    return elements.reshape(array.shape)
