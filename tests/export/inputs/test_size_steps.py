"""The step between the lengths that a network takes is found by trying few of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from normfold.export.inputs.size_steps import find_step


def phase_net(length: int) -> bool:
    """PhaseNet takes 24 of each 64 lengths: its convolutions with a stride pad what suits 3001."""
    return length % 64 == 0 or length % 64 in range(37, 49) or length % 64 in range(53, 64)


def u_net(length: int) -> bool:
    return length % 8 == 0


def with_a_table(length: int) -> bool:
    """Multiples of 8 up to the end of a learned table of positions."""
    return u_net(length) and length <= 90


@pytest.mark.parametrize(
    ("takes", "high", "step"),
    [
        (phase_net, None, 64),
        (phase_net, 200, 60),  # 124 and 184 are all that is left to try
        (u_net, None, 8),
        (u_net, 72, 8),
        (with_a_table, None, 8),
        (lambda length: True, None, 1),
        (lambda length: length == 64, None, 1),
    ],
)
def test_the_smallest_step_that_goes_on_being_taken_is_found(
    takes: Callable[[int], bool], high: int | None, step: int
) -> None:
    assert find_step(64, takes, None, high) == step


def test_a_network_that_takes_every_length_is_run_at_two_others_only() -> None:
    tried: list[int] = []
    assert find_step(64, lambda length: not tried.append(length)) == 1
    assert tried == [65, 66]


def test_once_a_step_goes_on_being_taken_no_other_is_tried() -> None:
    tried: list[int] = []
    assert find_step(64, lambda length: not tried.append(length) and u_net(length)) == 8
    assert tried == [*range(65, 73), 80, 88, 104, 120]


def test_lengths_that_are_too_large_to_try_do_not_speak_against_a_step() -> None:
    tried: list[int] = []
    assert find_step(64, lambda length: not tried.append(length) and u_net(length), fits=lambda n: n < 100) == 8
    assert tried == [*range(65, 73), 80, 88]
