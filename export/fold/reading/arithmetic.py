"""Readers of BatchNormalization and of sums, differences, products and quotients."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.fold.affine import Affine, batchnorm
from normfold.export.fold.net import Op
from normfold.export.fold.ops.activations import Same
from normfold.export.fold.ops.joins import Product, Sum
from normfold.export.fold.ops.scaling import NormStatistics, Scaled, Scaling, cancelling, mean_cancelling
from normfold.export.fold.reading.averages import weighted_mean
from normfold.export.fold.reading.node import Node, NotKnown, Reader
from normfold.export.graphs.node import normalises_by_batch


def _batchnorm(n: Node) -> Op:
    constants = [n.constant(i) for i in range(1, 5)]
    if normalises_by_batch(n.node) or any(c is None for c in constants):
        raise NotKnown
    gamma, beta, mean, var = (c.astype(np.float64) for c in constants if c is not None)
    epsilon = n.attribute("epsilon", float(np.float32(1e-5)))
    scale, shift = batchnorm(gamma, beta, mean, var, epsilon)
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))) or n.rank() < 2:
        raise NotKnown
    parts = n.parts()
    parts["outputs"] = parts["outputs"][:1]
    deviation = np.sqrt(np.maximum(var, 0.0))  # rounding may leave a variance of 0 just below it, above -epsilon
    usual = Affine.along(1, n.rank(), np.abs(mean) + deviation, 0.0).scale
    came = Affine.along(1, n.rank(), var, mean)
    statistics = NormStatistics(came.shift, came.scale, epsilon)
    params = Scaled.like(Affine.along(1, n.rank(), scale, shift), usual, statistics)
    cancels = mean_cancelling(cancelling(scale, shift, mean, var), scale)
    makes = Affine.along(1, n.rank(), np.abs(gamma), beta)
    return Scaling(params=params, target=True, is_batchnorm=True, cancels=cancels, makes=makes, **parts)


def _arithmetic(n: Node) -> Op:
    places = n.computed()
    if len(places) == 2 and len(n.node.inputs) == 2:
        if n.type in ("Add", "Sub"):
            return Sum(signs=(1, 1 if n.type == "Add" else -1), **n.parts((0, 1)))
        average = weighted_mean(n) if n.type == "Mul" else None
        return average or Product(divides=n.type == "Div", **n.parts((0, 1)))
    if len(places) != 1:
        raise NotKnown
    (place,) = places
    rank = n.rank(place)
    constant = n.constant(1 - place)
    assert constant is not None
    if constant.ndim > rank or not np.all(np.isfinite(constant)):
        raise NotKnown
    c = constant.astype(np.float64).reshape((1,) * (rank - constant.ndim) + constant.shape)
    shape = n.tensor(place).shape
    assert shape is not None
    if any(size > 1 and shape[axis] != size for axis, size in enumerate(c.shape)):
        raise NotKnown  # the constant is larger, so the result has another shape
    if n.type == "Add":
        affine = Affine.of(1.0, c)
    elif n.type == "Sub":
        affine = Affine.of(1.0, -c) if place == 0 else Affine.of(-1.0, c)
    elif n.type == "Mul":
        affine = Affine.of(c, 0.0)
    elif place == 0 and np.all(c != 0):
        with np.errstate(over="ignore"):
            affine = Affine.of(1.0 / c, 0.0)
    else:
        raise NotKnown
    if not np.all(np.isfinite(affine.scale)):
        raise NotKnown
    full = Affine.of(
        np.broadcast_to(affine.scale, _at_least(affine.scale, rank)),
        np.broadcast_to(affine.shift, _at_least(affine.shift, rank)),
    )
    by_channel = sum(size > 1 for size in c.shape) == 1
    if full.is_identity and c.size == 1:
        return Same(**n.parts((place,)))
    return Scaling(params=Scaled.like(full, np.ones((1,) * rank)), target=by_channel, **n.parts((place,)))


def _neg(n: Node) -> Op:
    minus = Affine.of(np.full((1,) * n.rank(), -1.0), np.zeros((1,) * n.rank()))
    return Scaling(params=Scaled.like(minus, np.ones((1,) * n.rank())), **n.parts())


def _at_least(part: NDArray[Any], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - part.ndim) + part.shape


def _sum(n: Node) -> Op:
    places = n.computed()
    if len(places) != len(n.node.inputs):
        raise NotKnown
    if len(places) == 1:
        return Same(**n.parts())
    return Sum(signs=(1,) * len(places), **n.parts(places))


#: With a constant they are affines, with another tensor sums or products.
READERS: dict[str, Reader] = {
    "BatchNormalization": _batchnorm,
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Sum": _sum,
    "Neg": _neg,
}
