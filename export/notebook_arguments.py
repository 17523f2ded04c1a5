"""The arguments of ``export_network`` as a notebook gives them: each must be of a type that the export can work with.

The command line reads texts and refuses what it cannot read; here a text may come where a number is meant.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from normfold.export.errors import ExportError, InputSpecError
from normfold.export.user_code import first_line

__all__ = ["as_array", "require_types"]


def require_types(arguments: Mapping[str, Any]) -> None:
    """Raise ExportError for the first argument of another type than expected; those without a rule are not looked at.

    >>> require_types({"opset": "18"})
    Traceback (most recent call last):
    normfold.export.errors.ExportError: opset='18': expected a whole number, for example 18
    """
    for name, given in arguments.items():
        fits, expected = _EXPECTED.get(name, (_anything, ""))
        if not fits(given):
            raise ExportError(f"{name}={reprlib.repr(given)}: expected {expected}")


def as_array(value: Any, name: str) -> Any:
    """Return an array, a tensor or nested numbers as an array. Raises InputSpecError where NumPy cannot hold it."""
    import torch

    is_tensor = isinstance(value, torch.Tensor)
    try:
        array = value.detach().cpu().numpy() if is_tensor else np.asarray(value)
    except Exception as error:  # bfloat16, sparse, of the meta device, lists of unequal lengths
        what = f"a tensor of {str(value.dtype).removeprefix('torch.')}" if is_tensor else f"a {type(value).__name__}"
        reason = first_line(error)
        raise InputSpecError(
            f"{name} is {what} that NumPy cannot hold ({reason}); expected a dense tensor or an array of numbers that "
            "an input can be, for example x.float()"
        ) from error
    if array.dtype == object:
        raise InputSpecError(f"{name} is {type(value).__name__}; expected an array of numbers, a tensor or a file")
    return array


def _anything(given: Any) -> bool:
    return True


def _is_number(given: Any) -> bool:
    return isinstance(given, Integral) and not isinstance(given, bool)


def _is_text(given: Any) -> bool:
    return isinstance(given, str)


def _is_digest(given: Any) -> bool:
    return _is_text(given) and re.fullmatch("([0-9a-fA-F]{64})?", given) is not None


def _is_path(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike)) and isinstance(os.fspath(given), str)


def _is_pair(given: Any) -> bool:
    """Whether it is a mean and a standard deviation: numbers, or arrays of numbers."""
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__len__") or not hasattr(given, "__iter__"):
        return False
    try:
        return len([np.asarray(part, np.float64) for part in given]) == 2
    except Exception:  # words, tensors of another device, an array without an axis
        return False


def _texts(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, bytes) and all(_is_text(one) for one in given)


def _names(given: Any) -> bool:
    """Whether it is a path, or several names, which may be numbers."""
    return _is_path(given) or (hasattr(given, "__iter__") and not isinstance(given, (bytes, Mapping)))


def _none_or(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda given: given is None or fits(given)


def _mapping(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda given: (
        isinstance(given, Mapping) and all(_is_text(key) and fits(value) for key, value in given.items())
    )


#: Argument -> whether a value is of its type, and what is expected, with an example.
_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "repository": (_is_path, "a path"),
    "name": (_is_text, "a name, for example 'surnames'"),
    "weights": (_none_or(_is_path), "the path of a file of weights"),
    "weights_key": (_is_text, "the name of a network in the file of weights, for example 'ema'"),
    "weights_sha256": (_is_digest, "64 digits, as sha256sum prints"),
    "labels": (_none_or(_names), "the path of a file, or a list of names, ['cat', 'dog']"),
    "standardize": (_none_or(_mapping(_is_pair)), "input -> (mean, std), {'x': (0.5, 2.0)}"),
    "softmax": (
        lambda given: _is_text(given) or _mapping(_none_or(_is_number))(given),
        "the name of an output, or output -> axis of its classes, {'output': 1}",
    ),
    "sigmoid": (_texts, "the name of an output, or a list of such names"),
    "version": (_none_or(_is_number), "a whole number, or None for the next free version"),
    "opset": (_is_number, "a whole number, for example 18"),
    "precision": (_none_or(_is_text), "'fp16', 'bf16', 'int8', or None for float32"),
    "form": (_is_text, "the name of a form, for example 'folded'"),
    "threads": (_is_number, "a whole number, for example 1"),
    "time_at": (_none_or(_mapping(_is_number)), "dimension -> size, {'L': 5000}"),
    "progress": (callable, "a function that is called with the name of each step"),
}
