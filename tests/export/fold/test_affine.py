from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from normfold.export.fold.affine import Affine, batchnorm, joined


def applied(affine: Affine, x: np.ndarray) -> np.ndarray:
    return affine.scale * x + affine.shift


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


@pytest.mark.parametrize(
    ("gamma", "beta", "mean", "var", "eps", "scale", "shift"),
    [
        (2.0, 1.0, 3.0, 4.0, 0.0, 1.0, -2.0),
        (3.0, 5.0, 1.0, 3.0, 1.0, 1.5, 3.5),
        (-1.0, 0.0, 2.0, 0.25, 0.0, -2.0, 4.0),
        (0.0, 7.0, 9.0, 1.0, 0.0, 0.0, 7.0),
    ],
)
def test_a_batchnorm_is_the_affine_worked_by_hand(
    gamma: float, beta: float, mean: float, var: float, eps: float, scale: float, shift: float
) -> None:
    s, t = batchnorm(*(np.array([v]) for v in (gamma, beta, mean, var)), eps)
    assert (s.item(), t.item()) == (scale, shift)


def test_a_batchnorm_is_what_pytorch_computes_in_float64() -> None:
    x, gamma, beta, mean = drawn(4, 5, 7), drawn(5, seed=1), drawn(5, seed=2), drawn(5, seed=3)
    var = drawn(5, seed=4) ** 2
    want = F.batch_norm(*(torch.from_numpy(a) for a in (x, mean, var, gamma, beta)), eps=1e-5).numpy()
    scale, shift = batchnorm(gamma, beta, mean, var, 1e-5)
    np.testing.assert_allclose(applied(Affine.along(1, 3, scale, shift), x), want, rtol=1e-13, atol=1e-13)


def test_float32_parameters_are_widened_before_anything_is_computed() -> None:
    gamma, var = np.array([1.0], np.float32), np.array([1e-8], np.float32)
    scale, _ = batchnorm(gamma, gamma * 0, gamma * 0, var, 0.0)
    assert scale.dtype == np.float64
    assert scale.item() == 1 / np.sqrt(float(np.float32(1e-8)))


def test_composing_multiplies_scales_and_carries_the_inner_shift() -> None:
    both = Affine.of([2.0], [1.0]).after(Affine.of([3.0], [5.0]))  # 2 (3 x + 5) + 1
    assert (both.scale.item(), both.shift.item()) == (6.0, 11.0)


def test_an_inverse_undoes_its_map() -> None:
    back = Affine.of([4.0], [2.0]).inverse()  # (y - 2) / 4
    assert (back.scale.item(), back.shift.item()) == (0.25, -0.5)


@pytest.mark.parametrize("scale", [0.0, 1e-310])
def test_a_scale_of_0_or_without_a_finite_reciprocal_has_no_inverse(scale: float) -> None:
    with pytest.raises(ZeroDivisionError):
        Affine.of([scale, 1.0], [0.0, 0.0]).inverse()


def test_parts_are_no_longer_than_they_vary() -> None:
    affine = Affine.of(np.full((1, 4, 1), 2.0), np.arange(4.0).reshape(1, 4, 1))
    assert affine.scale.shape == (1, 1, 1)
    assert affine.shift.shape == (1, 4, 1)
    assert affine.varies(1)
    assert not affine.varies(2)


def test_parts_of_lower_rank_are_aligned_from_behind() -> None:
    affine = Affine.of(2.0, np.zeros((1, 3, 1)))
    assert affine.scale.shape == (1, 1, 1)
    assert affine.rank == 3


def test_a_map_that_only_scales_or_only_shifts_is_not_the_identity() -> None:
    assert Affine.identity(3).is_identity
    assert not Affine.of(2.0, 0.0).is_identity
    assert not Affine.of(1.0, 1.0).is_identity
    assert Affine.of(1.0, [0.0, 1.0]).shifts
    assert not Affine.of(2.0, 0.0).shifts


def test_maps_are_equal_to_within_float64_rounding_and_no_further() -> None:
    a = Affine.of([0.1 + 0.2], [1.0])
    assert a.equals(Affine.of([0.3], [1.0]))
    assert not a.equals(Affine.of([0.3 + 1e-9], [1.0]))
    assert not a.equals(Affine.of([[0.3]], [[1.0]]))


def test_channels_are_read_along_one_axis_and_not_where_another_varies() -> None:
    scale, shift = drawn(3), drawn(3, seed=1)
    affine = Affine.along(1, 3, scale, shift)
    found = affine.channels(1, 3)
    assert found is not None
    np.testing.assert_array_equal(found[0], scale)
    np.testing.assert_array_equal(found[1], shift)
    assert affine.channels(2, 3) is None
    uniform = Affine.of(np.full((1, 1, 1), 2.0), 0.0).channels(-1, 5)
    assert uniform is not None
    np.testing.assert_array_equal(uniform[0], np.full(5, 2.0))


@pytest.mark.parametrize("axes", [(0, 2, 1), (1, 0, 2), (2, 0, 1)])
def test_a_moved_map_is_the_map_of_the_transposed_tensor(axes: tuple[int, ...]) -> None:
    x, affine = drawn(2, 3, 4), Affine.of(drawn(1, 3, 1), drawn(1, 3, 4, seed=1))
    np.testing.assert_array_equal(applied(affine.moved(axes), x.transpose(axes)), applied(affine, x).transpose(axes))


def test_a_taken_map_is_the_map_of_the_slices() -> None:
    x, affine, index = drawn(2, 5, 4), Affine.along(1, 3, drawn(5), drawn(5, seed=1)), np.array([4, 0, 0])
    np.testing.assert_array_equal(applied(affine.take(1, index), x[:, index]), applied(affine, x)[:, index])
    np.testing.assert_array_equal(
        applied(affine.take(2, index[1:]), x[:, :, index[1:]]), applied(affine, x)[:, :, [0, 0]]
    )


def test_joined_maps_are_the_map_of_the_joined_tensor() -> None:
    x, y = drawn(2, 3, 4), drawn(2, 2, 4, seed=1)
    a, b = Affine.along(1, 3, drawn(3), drawn(3, seed=2)), Affine.identity(3)
    whole = joined([a, b], [3, 2], 1)
    np.testing.assert_array_equal(
        applied(whole, np.concatenate([x, y], 1)), np.concatenate([applied(a, x), applied(b, y)], 1)
    )


def test_an_affine_of_another_length_than_the_axis_has_no_channels() -> None:
    affine = Affine.along(2, 3, np.float64([1, 2, 3]), np.zeros(3))
    assert affine.channels(-1, 4) is None
    assert affine.channels(-1, 3) is not None
