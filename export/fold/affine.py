"""Affine maps of a tensor, and their algebra.

    BatchNorm in inference:  y[c] = scale[c] * x[c] + shift[c],
    scale = gamma / sqrt(var + eps),   shift = beta - mean * scale

Ioffe & Szegedy 2015, arXiv:1502.03167, Algorithm 2, line 11. All arithmetic is float64; weights are rounded once, when
they are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Affine:
    """The map ``x -> scale * x + shift`` of a tensor of rank r.

    scale, shift: rank r, broadcastable against the tensor; an axis along which both are constant has length 1.
    """

    scale: Array
    shift: Array

    @classmethod
    def of(cls, scale: ArrayLike, shift: ArrayLike) -> Affine:
        """Return the map in float64, both parts of one rank, with length 1 along each axis where a part is constant."""
        a, b = np.asarray(scale, np.float64), np.asarray(shift, np.float64)
        rank = max(a.ndim, b.ndim)
        return cls(
            _collapsed(a.reshape((1,) * (rank - a.ndim) + a.shape)),
            _collapsed(b.reshape((1,) * (rank - b.ndim) + b.shape)),
        )

    @classmethod
    def along(cls, axis: int, rank: int, scale: ArrayLike, shift: ArrayLike) -> Affine:
        """Return the per-channel map of a tensor of the given rank; scale and shift of shape (C,)."""
        shape = [1] * rank
        shape[axis] = -1
        return cls.of(np.asarray(scale, np.float64).reshape(shape), np.asarray(shift, np.float64).reshape(shape))

    @staticmethod
    def identity(rank: int) -> Affine:
        """Return ``x -> x``."""
        return _identity(rank)

    @property
    def rank(self) -> int:
        """The rank of the tensors it maps."""
        return self.scale.ndim

    @cached_property
    def is_identity(self) -> bool:
        """Whether it maps every x to itself."""
        return bool((self.scale == 1).all() and not self.shift.any())

    @cached_property
    def shifts(self) -> bool:
        """Whether the shift is other than zero anywhere."""
        return bool(self.shift.any())

    def after(self, inner: Affine) -> Affine:
        """Return ``self ∘ inner``:  s = s₂ s₁,  t = s₂ t₁ + t₂."""
        return Affine.of(self.scale * inner.scale, self.scale * inner.shift + self.shift)

    def inverse(self) -> Affine:
        """Return the map back.

        Raises:
            ZeroDivisionError: where a scale is 0, or so small that its reciprocal overflows.
        """
        return self._inverse

    @cached_property
    def _inverse(self) -> Affine:
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            scale = 1.0 / self.scale
            shift = -self.shift / self.scale
        if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
            raise ZeroDivisionError("a scale of 0 has no inverse")
        return Affine.of(scale, shift)

    def equals(self, other: Affine) -> bool:
        """Whether both are the same map to within float64 rounding of a few products."""
        return _near(self.scale, other.scale) and _near(self.shift, other.shift)

    def varies(self, axis: int) -> bool:
        """Whether it differs from one index of that axis to another."""
        return bool(self.scale.shape[axis] > 1 or self.shift.shape[axis] > 1)

    def channels(self, axis: int, size: int) -> tuple[Array, Array] | None:
        """Return scale and shift of shape (size,) along one axis; None where another axis varies, or another size."""
        axis %= self.rank
        if any(self.varies(a) for a in range(self.rank) if a != axis):
            return None
        if any(part.shape[axis] not in (1, size) for part in (self.scale, self.shift)):
            return None
        scale, shift = self.scale.reshape(-1), self.shift.reshape(-1)
        return (
            scale if len(scale) == size else np.full(size, scale[0]),
            shift if len(shift) == size else np.full(size, shift[0]),
        )

    def take(self, axis: int, index: NDArray[np.int64]) -> Affine:
        """Return the map of the slices ``index`` along one axis."""
        return Affine.of(
            *(part if part.shape[axis] == 1 else part.take(index, axis) for part in (self.scale, self.shift))
        )

    def taken(self, axis: int, index: NDArray[np.int64]) -> Affine:
        """Return the map of ``numpy.take(x, index, axis)``: the axes of the index take the place of the axis."""
        ends = [slice(axis), slice(axis + 1, None)]
        return Affine.of(
            *(
                part.reshape([*part.shape[ends[0]], *[1] * index.ndim, *part.shape[ends[1]]])
                if part.shape[axis] == 1
                else part.take(index, axis)
                for part in (self.scale, self.shift)
            )
        )

    def moved(self, axes: Sequence[int]) -> Affine:
        """Return the map of the transposed tensor, ``numpy.transpose(x, axes)``."""
        return Affine.of(self.scale.transpose(axes), self.shift.transpose(axes))


def joined(parts: Sequence[Affine], sizes: Sequence[int], axis: int) -> Affine:
    """Return the map of tensors that are joined along ``axis``, where each has its given size."""

    def join(arrays: list[Array]) -> Array:
        shape = np.broadcast_shapes(*((*a.shape[:axis], 1, *a.shape[axis + 1 :]) for a in arrays))
        return np.concatenate(
            [np.broadcast_to(a, (*shape[:axis], n, *shape[axis + 1 :])) for a, n in zip(arrays, sizes, strict=True)],
            axis,
        )

    return Affine.of(join([p.scale for p in parts]), join([p.shift for p in parts]))


def placed(whole: Affine, part: Affine, index: NDArray[np.int64], size: int, axis: int) -> Affine:
    """Return the map of ``size`` slices along ``axis`` that is ``part`` at the given ones and ``whole`` elsewhere."""

    def place(into: Array, values: Array) -> Array:
        outer = ((*a.shape[:axis], 1, *a.shape[axis + 1 :]) for a in (into, values))
        shape = list(np.broadcast_shapes(*outer))
        shape[axis] = size
        result = np.broadcast_to(into, shape).copy()
        result[(slice(None),) * axis + (index,)] = values
        return result

    return Affine.of(place(whole.scale, part.scale), place(whole.shift, part.shift))


def batchnorm(gamma: Array, beta: Array, mean: Array, var: Array, eps: float) -> tuple[Array, Array]:
    """Return (scale, shift), each (C,), of an inference BatchNorm with parameters of shape (C,)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # the caller refuses what is not finite
        scale = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + float(eps))
        return scale, beta.astype(np.float64) - mean.astype(np.float64) * scale


@cache
def _identity(rank: int) -> Affine:
    return Affine(np.ones((1,) * rank), np.zeros((1,) * rank))


def _near(a: Array, b: Array) -> bool:
    if a is b:
        return True
    if a.ndim != b.ndim:
        return False
    size = float(np.abs(a).max(initial=1.0))
    return bool(np.abs(a - b).max(initial=0.0) <= 1e-11 * size)


def _collapsed(part: Array) -> Array:
    if part.size == 1:
        return part
    if part.size == max(part.shape) and part.item(0) != part.item(-1):
        return part  # most parts vary along one axis, and differ in its first and last entry
    for axis, size in enumerate(part.shape):
        if size > 1:
            first = part[(slice(None),) * axis + (slice(1),)]
            if (part == first).all():
                part = first
    return part
