"""How a configuration says that requests wait and are batched."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from normfold.protos import model_config as mc
from normfold.serving.scheduling.batching import QueuePolicy, read_policy


def policy(batching: str):
    return read_policy(text_format.Parse(f"max_batch_size: 4 dynamic_batching {{ {batching} }}", mc.ModelConfig()))


@pytest.mark.parametrize(("asked", "level"), [(0, 2), (1, 1), (3, 3), (4, 2)])
def test_each_level_up_to_the_lowest_can_be_asked_for(asked, level):
    assert policy("priority_levels: 3 default_priority_level: 2").level(asked) == level


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_without_priority_levels_there_is_one_level_whatever_the_default_says(asked):
    assert policy("default_priority_level: 2").level(asked) == 0


@pytest.mark.parametrize(
    ("asked", "own", "allowed", "wait"),
    [(5, 9, True, 5), (20, 9, True, 9), (5, 0, True, 5), (0, 9, True, 9), (5, 9, False, 9)],
)
def test_a_request_may_shorten_its_wait_where_that_is_allowed(asked, own, allowed, wait):
    assert QueuePolicy(timeout_us=own, allow_override=allowed).wait_us(asked) == wait
