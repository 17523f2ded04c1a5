"""Runs before a model says that it is ready: those that config.pbtxt asks for, else one where the shapes are known."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.protos import model_config as mc
from normfold.protos.datatypes import Datatype, by_config
from normfold.serving.contract import Contract, reshaped
from normfold.serving.errors import ConfigError, InvalidRequest, LoadError
from normfold.serving.repository import Files
from normfold.serving.session import Session
from normfold.serving.tensors import to_array

Array = NDArray[Any]

#: The folder beside the versions that holds input_data_file.
FOLDER = "warmup"

#: How often the default warm-up runs: the first run pays for allocations, the best of the others is the measure.
RUNS = 5


def run(session: Session, config: mc.ModelConfig, contract: Contract, folder: Files) -> tuple[float, int]:
    """Run ``session`` warm: the seconds of the fastest run and the bytes of its inputs (infinity and 0 without runs).

    Raises LoadError where the model fails.
    """
    best, size = math.inf, 0
    outputs = list(contract.outputs)
    samples = [(_sample(w, contract, folder), max(1, w.count)) for w in config.model_warmup] or _default(contract)
    for feeds, count in samples:
        for _ in range(count):
            started = time.perf_counter()
            try:
                session.run(feeds, outputs)
            except InvalidRequest as error:
                if not config.model_warmup:
                    return math.inf, 0  # zeros need not be a valid input
                raise LoadError(f"warm-up failed: {error}") from None
            taken = time.perf_counter() - started
            if taken < best:
                best, size = taken, sum(array.nbytes for array in feeds.values())
    return best, size


def _default(contract: Contract) -> list[tuple[dict[str, Array], int]]:
    """Zeros of one row, where no size but the batch is open."""
    feeds = {}
    for spec in contract.inputs.values():
        if spec.optional:
            continue
        shape = (1, *spec.shape[1:]) if contract.max_batch_size or spec.shape[:1] == (-1,) else spec.shape
        if spec.any_rank or -1 in shape:
            return []
        array = _zeros(shape, spec.datatype)
        feeds[spec.name] = array if spec.reshape is None else array.reshape(reshaped(shape, spec.shape, spec.reshape))
    return [(feeds, RUNS)]


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
        if by_config(entry.data_type) is not spec.datatype or not spec.fits(dims) or any(size < 0 for size in dims):
            raise ConfigError(f"model_warmup {warmup.name!r}: {name!r} {list(dims)} is not {spec}")
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


def _zeros(shape: tuple[int, ...], datatype: Datatype) -> Array:
    if datatype.name != "BYTES":
        return np.zeros(shape, datatype.dtype)
    array = np.empty(shape, object)
    array.fill(b"")
    return array
