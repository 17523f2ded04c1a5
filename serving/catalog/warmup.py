"""The warm-up: runs of a model before it says that it is ready.

The inputs are those that config.pbtxt describes; without them, the golden input; without it, one row of zeros, if the
shape of a row is known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.protos import model_config as mc
from normfold.protos.datatypes import Datatype
from normfold.serving.catalog import bounds
from normfold.serving.catalog.contract import Contract, reshaped
from normfold.serving.catalog.repository import Files
from normfold.serving.errors import ConfigError, Hindered, InvalidRequest, LoadError, OutOfMemory
from normfold.serving.runtime.reasons import TOO_LITTLE
from normfold.serving.runtime.session import Session
from normfold.serving.wire.tensors import to_array

Array = NDArray[Any]
Note = Callable[[Mapping[str, Array], int], None]

#: The folder beside the versions in which input_data_file is looked for.
FOLDER = "warmup"

#: Runs of a warm-up that config.pbtxt does not describe. The first run is slower, because it allocates memory.
RUNS = 5

#: Sizes that are tried where a model file leaves them open and nothing describes an input.
GUESSED_SIZES = (16, 128)


@dataclass(frozen=True)
class WarmupSample:
    """Inputs to run a model with, ``count`` times."""

    feeds: dict[str, Array]
    count: int
    #: config.pbtxt asks for this run: if it fails, the model does not load.
    asked_for: bool = False


def run(session: Session, samples: Iterable[WarmupSample], outputs: Sequence[str], note: Note) -> set[str]:
    """Warm ``session`` up with ``samples``; calls ``note`` with the inputs and nanoseconds of every run.

    The outputs that did not have as many rows as the inputs. Raises LoadError.
    """
    odd: set[str] = set()
    for sample in samples:
        for _ in range(sample.count):
            started = time.perf_counter_ns()
            try:
                answers = session.run(sample.feeds, outputs)
            except InvalidRequest as error:
                if not sample.asked_for:
                    break  # zeros may be no valid input
                raise LoadError(f"warm-up failed: {error}") from None
            except OutOfMemory:
                raise Hindered(f"its warm-up {TOO_LITTLE}") from None
            note(sample.feeds, time.perf_counter_ns() - started)
            # An input with a default, which golden.json may give, need have no rows.
            rows = {sample.feeds[tensor.name].shape[:1] for tensor in session.inputs if not tensor.optional}
            rows = rows or {array.shape[:1] for array in answers}
            odd |= {n for n, a in zip(outputs, answers, strict=True) if len(rows) > 1 or a.shape[:1] not in rows}
    return odd


def samples(
    config: mc.ModelConfig, contract: Contract, folder: Files, golden: dict[str, Array] | None
) -> list[WarmupSample]:
    """The inputs to warm a model up with; ``golden`` are those of golden.json. Raises ConfigError."""
    if config.model_warmup:
        return [WarmupSample(_sample(w, contract, folder), max(1, w.count), True) for w in config.model_warmup]
    if golden is not None:
        return [WarmupSample(golden, RUNS)]
    return [WarmupSample(feeds, RUNS) for feeds in _default(contract)]


def _default(contract: Contract) -> list[dict[str, Array]]:
    """One row of zeros, if every size but that of the batch is known and it has at most ``WARMUP_ELEMENTS``."""
    feeds = {}
    for spec in contract.inputs.values():
        if spec.optional:
            continue
        shape = (1, *spec.shape[1:]) if contract.max_batch_size or spec.shape[:1] == (-1,) else spec.shape
        if spec.any_rank or -1 in shape or _numbers(shape) > bounds.WARMUP_ELEMENTS:
            return []
        array = _zeros(shape, spec.datatype)
        feeds[spec.name] = array if spec.reshape is None else array.reshape(reshaped(shape, spec.shape, spec.reshape))
    return [feeds]


def guesses(session: Session, batched: bool) -> Iterator[dict[str, Array]]:
    """Inputs of zeros that the model may take: with several sizes in place of those that its file leaves open.

    None has more than ``WARMUP_ELEMENTS`` elements.
    """
    taken = [tensor for tensor in session.inputs if not tensor.optional]
    if any(tensor.shape is None for tensor in taken):
        return
    for size in GUESSED_SIZES:
        shapes = {
            tensor.name: tuple(
                (1 if batched and not axis else size) if each == -1 else each
                for axis, each in enumerate(tensor.shape or ())
            )
            for tensor in taken
        }
        if max(map(_numbers, shapes.values()), default=0) <= bounds.WARMUP_ELEMENTS:
            yield {tensor.name: _zeros(shapes[tensor.name], tensor.datatype) for tensor in taken}


def _sample(warmup: mc.ModelWarmup, contract: Contract, folder: Files) -> dict[str, Array]:
    """The inputs that a model_warmup entry describes. Raises ConfigError."""
    missing = contract.required.difference(warmup.inputs)
    unknown = set(warmup.inputs).difference(contract.inputs)
    if missing or unknown:
        raise ConfigError(f"model_warmup {warmup.name!r} must give the inputs {sorted(contract.required)}")
    feeds = {}
    for name, entry in warmup.inputs.items():
        spec = contract.inputs[name]
        dims = (max(1, warmup.batch_size), *entry.dims) if contract.max_batch_size else tuple(entry.dims)
        if entry.data_type != spec.datatype.config or not spec.fits(dims) or any(size < 0 for size in dims):
            raise ConfigError(f"model_warmup {warmup.name!r}: {name!r} {list(dims)} is not {spec}")
        if _numbers(dims) > bounds.WARMUP_ELEMENTS:
            raise ConfigError(f"model_warmup {warmup.name!r}: {name!r} has more than {bounds.WARMUP_ELEMENTS} elements")
        array = _data(entry, dims, spec.datatype, f"model_warmup {warmup.name!r}: {name!r}", folder)
        feeds[name] = array if spec.reshape is None else array.reshape(reshaped(dims, spec.shape, spec.reshape))
    return feeds


def _data(entry: mc.ModelWarmup.Input, shape: tuple[int, ...], datatype: Datatype, where: str, folder: Files) -> Array:
    kind = entry.WhichOneof("input_data_type")
    if kind == "input_data_file":
        try:
            return to_array(folder.read(f"{FOLDER}/{entry.input_data_file}"), shape, datatype, where, "")
        except InvalidRequest as error:
            raise ConfigError(str(error)) from None
    if kind == "random_data" and datatype.dtype.kind == "f":
        return np.random.default_rng(0).standard_normal(shape).astype(datatype.dtype)
    if kind == "random_data" and datatype.dtype.kind in "iu" and datatype.name != "BF16":
        return np.random.default_rng(0).integers(0, 100, shape).astype(datatype.dtype)
    if kind is None:
        raise ConfigError(f"{where} must say zero_data, random_data or input_data_file")
    return _zeros(shape, datatype)


def _numbers(shape: tuple[int, ...]) -> int:
    """The elements of an array, a size of 0 counted as 1: NumPy refuses (0, 9e18), too."""
    return math.prod(max(size, 1) for size in shape)


def _zeros(shape: tuple[int, ...], datatype: Datatype) -> Array:
    if datatype.name != "BYTES":
        return np.zeros(shape, datatype.dtype)
    array = np.empty(shape, object)
    array.fill(b"")
    return array
