"""Inputs made from the BatchNorms' statistics alone, to calibrate int8 without any samples.

The running statistics were measured on the training data, so they say what every layer sees: of each channel that a
BatchNorm reads they give the mean and the variance (Nagel et al. 2019, arXiv:1906.04721, section 4.2, bound the
activations by beta and gamma in this way; Cai et al. 2020, arXiv:2001.00281, make inputs with these statistics by
gradient descent). Here rows are drawn, and those are kept that have the statistics together. This needs no gradient, so
it works on any graph, and the folded graph is then run on the rows as on real samples: ReLUs, sums, concatenations and
layers without a BatchNorm get their ranges too.

1. POOL rows are drawn: white noise, smooth noise, and one-hot columns, at scales around the one at which the first
   BatchNorms read what they expect (r = 1 in :mod:`normfold.export.calibration.scale`), some with an offset.
2. The unfolded graph is run on each, and the first and second moment of each channel of each BatchNorm are kept.
3. ROWS rows are chosen one after another, without repetition, each so that the moments of all that are chosen are
   nearest to the statistics: least sum over BatchNorms of the mean over channels of

       (mean - mu)^2 / var  +  (deviation / sqrt(var) - 1)^2

How well this calibrates, beside real samples: benches/bits/RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normfold.export.calibration.rows import Division, Rows
from normfold.export.calibration.scale import Norm, norms_of, with_norm_inputs
from normfold.export.errors import ExportError
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.sizes import batch_dimension
from normfold.export.inputs.specs import InputSpec, random_inputs
from normfold.export.proof.verify import Case

__all__ = ["POOL", "ROWS", "synthetic"]

#: Rows that are drawn, and rows that are chosen from them.
POOL, ROWS = 384, 32
#: Each chosen row calibrates once more at this scale: layers without a BatchNorm behind them read larger values on real
#: data, which fit their filters, than on noise of the same variance.
MARGIN = 1.5
#: Correlation lengths of smooth noise, as parts of the last axis; 0 is white noise.
SMOOTHNESS = (0.0, 0.007, 0.02, 0.07, 0.2, 0.7)
#: Largest factor between a row's scale and the fitted one, either way.
SPREAD = 4.0
#: Rounds in which the scale is fitted, and the rows that are run in each.
FITS, FIT_ROWS = 3, 6

Arrays = dict[str, NDArray[Any]]


def synthetic(unfolded: bytes, specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> Division | None:
    """Return rows to calibrate and other rows to measure; None where the graph has no BatchNorm with statistics.

    unfolded is the captured float32 graph, sizes the values of its named dimensions. The same on every call.
    """
    norms = norms_of(unfolded)
    if not norms:
        return None
    batch = batch_dimension(specs)
    single = {**sizes, **({batch.name: batch.low or 1} if batch else {})}
    drawing = _Drawing(with_norm_inputs(unfolded, norms), norms, specs, single)
    drawing.fit()
    calibrate, measure = drawing.chosen(0), drawing.chosen(1)
    if not calibrate or not measure:
        return None
    calibrate += [_times(row, MARGIN) for row in calibrate]
    return Division(_named(calibrate, "the first drawing", specs), _named(measure, "another drawing", specs))


def _named(rows: Sequence[Arrays], drawing: str, specs: Sequence[InputSpec]) -> Rows:
    cases = [Case("synthetic", f"row {number} of {drawing}", row) for number, row in enumerate(rows)]
    source = f"made from the BatchNorms' statistics, {drawing}"
    return Rows.of(cases, "synthetic", source, specs)


def _times(row: Arrays, factor: float) -> Arrays:
    return {
        name: (array * factor).astype(array.dtype) if array.dtype.kind == "f" else array for name, array in row.items()
    }


@dataclass
class _Drawing:
    """Draws rows and measures what the BatchNorms read of them."""

    graph: Runtime
    norms: tuple[Norm, ...]
    specs: Sequence[InputSpec]
    sizes: Mapping[str, int]
    #: The scale of a row for which the first BatchNorms read what they expect, by kind of noise.
    scales: tuple[float, ...] = (1.0,) * (len(SMOOTHNESS) + 1)

    def fit(self) -> None:
        """Find the scale of each kind of noise."""
        self.scales = tuple(self._fitted(kind) for kind in range(len(self.scales)))

    def chosen(self, seed: int) -> list[Arrays]:
        """Return ROWS of POOL rows that have the BatchNorms' statistics together; fewer where rows are not finite."""
        rng = np.random.default_rng(seed)
        rows, moments = [], []
        for _ in range(POOL):
            kind = int(rng.integers(len(self.scales)))
            factor = float(np.exp(rng.uniform(-np.log(SPREAD), np.log(SPREAD))))
            row = self._row(rng, kind, self.scales[kind] * factor, offset=float(rng.random() < 0.5))
            of_row = self._moments(row)
            if of_row is not None:
                rows.append(row)
                moments.append(of_row)
        if not rows:
            return []
        return [rows[index] for index in _nearest([np.stack(m) for m in zip(*moments, strict=True)], self.norms)]

    def _fitted(self, kind: int) -> float:
        """Return the scale at which the first BatchNorms read the energy about the zero input that they expect."""
        first = [index for index, norm in enumerate(self.norms) if norm.first]
        still = self._moments(self._row(np.random.default_rng(0), kind, 0.0, 0.0))
        scale = 1.0
        if still is None:
            return scale
        for _ in range(FITS):
            rng = np.random.default_rng(2)
            drawn = [self._moments(self._row(rng, kind, scale, 0.0)) for _ in range(FIT_ROWS)]
            ratios = [
                _energy(m[index], still[index][0], self.norms[index]) for m in drawn if m is not None for index in first
            ]
            if not ratios or not 0 < np.median(ratios) < np.inf:
                break
            scale /= float(np.sqrt(np.median(ratios)))
        return scale

    def _row(self, rng: np.random.Generator, kind: int, scale: float, offset: float) -> Arrays:
        arrays = random_inputs(self.specs, self.sizes, rng)
        for spec in self.specs:
            drawn = arrays[spec.name]
            if drawn.dtype.kind == "f" and drawn.ndim:
                noise = _one_hot(rng, drawn.shape) if kind == len(SMOOTHNESS) else _smooth(drawn, SMOOTHNESS[kind])
                moved = scale * (noise + offset * rng.standard_normal())
                arrays[spec.name] = moved.astype(drawn.dtype)
        return arrays

    def _moments(self, row: Arrays) -> list[NDArray[np.float64]] | None:
        """Return mean and mean square of each channel, (2, C), for each BatchNorm; None where one is not finite."""
        try:
            values = {**row, **self.graph.run(row)}
        except ExportError:
            return None
        found = []
        for norm in self.norms:
            x = values[norm.value].astype(np.float64)
            axes = (0, *range(2, x.ndim))
            found.append(np.stack([x.mean(axes), (x * x).mean(axes)]))
        return found if all(np.isfinite(m).all() for m in found) else None


def _energy(moments: NDArray[np.float64], still: NDArray[np.float64], norm: Norm) -> float:
    """Return the mean over channels of E[(x - still)^2] / (var + (mean - still)^2)."""
    mean, square = moments
    energy = square - 2 * still * mean + still * still
    return float((energy / (norm.var + (norm.mean - still) ** 2)).mean())


def _nearest(moments: Sequence[NDArray[np.float64]], norms: Sequence[Norm]) -> list[int]:
    """Return which rows to keep; moments hold (rows, 2, C) for each BatchNorm."""
    sums = [np.zeros(m.shape[1:]) for m in moments]
    kept: list[int] = []
    for count in range(1, min(ROWS, len(moments[0])) + 1):
        distance = np.zeros(len(moments[0]))
        for total, of_rows, norm in zip(sums, moments, norms, strict=True):
            mean, square = np.moveaxis((total + of_rows) / count, 1, 0)
            deviation = np.sqrt(np.maximum(square - mean * mean, 0) / norm.var)
            distance += ((mean - norm.mean) ** 2 / norm.var).mean(1) + ((deviation - 1) ** 2).mean(1)
        distance[kept] = np.inf
        kept.append(int(np.argmin(distance)))
        sums = [total + of_rows[kept[-1]] for total, of_rows in zip(sums, moments, strict=True)]
    return kept


def _smooth(noise: NDArray[Any], length: float) -> NDArray[Any]:
    """Return noise of mean square about 1 whose spectrum falls with the frequency times ``length`` of the last axis."""
    count = noise.shape[-1]
    if length == 0 or count < 2:
        return noise
    gain = 1 / np.sqrt(1 + (2 * np.pi * np.fft.rfftfreq(count) * length * count) ** 2)
    smooth: NDArray[Any] = np.fft.irfft(np.fft.rfft(noise, axis=-1) * gain, n=count, axis=-1)
    return smooth / max(float(np.sqrt((smooth**2).mean())), 1e-30)


def _one_hot(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an array with one 1 along axis 1 at the first positions of the others, as one-hot texts have."""
    if len(shape) < 2:
        return rng.standard_normal(shape)
    channels, positions = shape[1], int(np.prod(shape[2:]))
    filled = max(1, int(rng.uniform(0.2, 1) * positions))
    hot = np.zeros((shape[0], channels, positions))
    for row in hot:
        row[rng.integers(0, channels, filled), np.arange(filled)] = 1
    return hot.reshape(shape)
