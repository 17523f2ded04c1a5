"""Readers of activations, and of operators that leave every number as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from normfold.export.fold.net import Op
from normfold.export.fold.ops.activations import Activation, Same, Sloped
from normfold.export.fold.ops.clamps import Bounds, Clamp
from normfold.export.fold.reading.node import Node, NotKnown, Reader


def _relu(n: Node) -> Op:
    return Clamp(params=_bounds(n.rank(), 0.0, np.inf), **n.parts())


def _clip(n: Node) -> Op:
    lo, hi = n.attribute("min"), n.attribute("max")
    for index in (1, 2):
        if n.has(index):
            bound = n.constant(index)
            if bound is None:
                raise NotKnown
            lo, hi = (float(bound.reshape(())), hi) if index == 1 else (lo, float(bound.reshape(())))
    return Clamp(params=_bounds(n.rank(), -np.inf if lo is None else lo, np.inf if hi is None else hi), **n.parts())


def _max(n: Node) -> Op:
    places = n.computed()
    if len(n.node.inputs) != 2 or len(places) != 1:
        raise NotKnown
    (place,) = places
    bound = n.constant(1 - place)
    assert bound is not None
    rank, shape = n.rank(place), n.tensor(place).shape
    assert shape is not None
    if bound.ndim > rank or np.any(np.isnan(bound)):
        raise NotKnown
    c = bound.astype(np.float64).reshape((1,) * (rank - bound.ndim) + bound.shape)
    if any(size > 1 and shape[axis] != size for axis, size in enumerate(c.shape)):
        raise NotKnown
    return Clamp(params=_bounds(rank, c, np.inf) if n.type == "Max" else _bounds(rank, -np.inf, c), **n.parts((place,)))


def _bounds(rank: int, lo: Any, hi: Any) -> Bounds:
    a, b = np.asarray(lo, np.float64), np.asarray(hi, np.float64)
    a = np.minimum(a, b)  # where the bounds cross, every entry becomes the upper one
    return Bounds(a.reshape((1,) * (rank - a.ndim) + a.shape), b.reshape((1,) * (rank - b.ndim) + b.shape))


def _leaky_relu(n: Node) -> Op:
    return Sloped(params=np.full((1,) * n.rank(), float(n.attribute("alpha", np.float32(0.01)))), **n.parts())


def _prelu(n: Node) -> Op:
    slope = n.constant(1)
    if slope is None or slope.ndim > n.rank() or n.computed() != [0]:
        raise NotKnown
    return Sloped(params=slope.astype(np.float64).reshape((1,) * (n.rank() - slope.ndim) + slope.shape), **n.parts())


def _cast(n: Node) -> Op:
    if n.tensor(0).value.dtype != n.tensor_out().value.dtype or n.tensor(0).value.dtype is None:
        raise NotKnown
    return Same(**n.parts())


def _same(n: Node) -> Op:
    if n.type == "Dropout":
        training = n.constant(2) if n.has(2) else np.array(False)
        if training is None or training.any() or not n.only_first_read():
            raise NotKnown
    parts = n.parts()
    parts["outputs"] = parts["outputs"][:1]
    return Same(**parts)


def _at(function: Callable[[np.float64], Any]) -> Callable[[Node], Op]:
    def read(n: Node) -> Op:
        return _activation(n, function)

    return read


def _activation(n: Node, function: Callable[[np.float64], Any]) -> Op:
    if n.computed() != [0]:
        raise NotKnown

    def at(v: float) -> float:
        with np.errstate(all="ignore"):  # a constant that overflows cannot be used
            return float(function(np.float64(v)))

    return Activation(function=at, **n.parts())


def _elu(n: Node) -> Op:
    alpha = n.attribute("alpha", 1.0)
    return _activation(n, lambda v: v if v > 0 else alpha * np.expm1(v))


def _celu(n: Node) -> Op:
    alpha = n.attribute("alpha", 1.0)
    return _activation(n, lambda v: v if v > 0 else alpha * np.expm1(v / alpha))


def _selu(n: Node) -> Op:
    alpha, gamma = n.attribute("alpha", 1.67326319217681884765625), n.attribute("gamma", 1.05070102214813232421875)
    return _activation(n, lambda v: gamma * (v if v > 0 else alpha * np.expm1(v)))


def _gelu(n: Node) -> Op:
    if n.attribute("approximate", "none") == "tanh":
        return _activation(n, lambda v: 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))))
    return _activation(n, lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))))


def _swish(n: Node) -> Op:
    alpha = n.attribute("alpha", 1.0)
    return _activation(n, lambda v: v * _sigmoid(alpha * v))


def _hard_sigmoid(n: Node) -> Op:
    alpha, beta = n.attribute("alpha", 0.2), n.attribute("beta", 0.5)
    return _activation(n, lambda v: np.clip(alpha * v + beta, 0, 1))


def _thresholded(n: Node) -> Op:
    alpha = n.attribute("alpha", 1.0)
    return _activation(n, lambda v: v if v > alpha else 0.0)


def _sigmoid(v: np.float64) -> Any:
    return 1 / (1 + np.exp(-v))


def _softplus(v: np.float64) -> Any:
    return np.logaddexp(0.0, v)


#: Clamps, activations of two slopes, smooth activations, and identities.
READERS: dict[str, Reader] = {
    "Relu": _relu,
    "Clip": _clip,
    "Max": _max,
    "Min": _max,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Elu": _elu,
    "Gelu": _gelu,
    "Sigmoid": _at(_sigmoid),
    "Tanh": _at(np.tanh),
    "Celu": _celu,
    "Selu": _selu,
    "Swish": _swish,
    "Mish": _at(lambda v: v * np.tanh(_softplus(v))),
    "HardSwish": _at(lambda v: v * np.clip(v / 6 + 0.5, 0, 1)),
    "HardSigmoid": _hard_sigmoid,
    "ThresholdedRelu": _thresholded,
    "Softplus": _at(_softplus),
    "Softsign": _at(lambda v: v / (1 + abs(v))),
    "Erf": _at(math.erf),
    "Exp": _at(np.exp),
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "CastLike": _cast,
}
