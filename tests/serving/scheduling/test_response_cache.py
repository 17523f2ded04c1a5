"""The cache of responses: what it drops, and which requests it takes for equal."""

from __future__ import annotations

import tracemalloc

import numpy as np

from normfold.serving.scheduling.response_cache import ARRAY_BYTES, ENTRY_BYTES, ResponseCache


def test_the_cache_drops_what_was_used_longest_ago():
    cache = ResponseCache(limit_bytes=2 * (ENTRY_BYTES + ARRAY_BYTES + 40) + 39)
    answers = {name: [np.full(10, ord(name), np.float32)] for name in "abc"}
    keys = {name: cache.key({"x": array[0]}, ["y"]) for name, array in answers.items()}
    for name in "ab":
        cache.keep(keys[name], cache.copied(answers[name]))
    np.testing.assert_array_equal(cache.find(keys["a"]), answers["a"])
    cache.keep(keys["c"], cache.copied(answers["c"]))
    assert cache.find(keys["b"]) is None
    np.testing.assert_array_equal(cache.find(keys["a"]), answers["a"])
    assert cache.copied([np.zeros(1000, np.float32)]) is None
    cache.keep(b"large", None)
    assert cache.find(b"large") is None


def test_only_equal_requests_share_a_key():
    x = np.zeros((2, 2), np.float32)
    text = np.array([b"ab", b"c"], object)
    different = [
        ({"x": x}, ["y"]),
        ({"x": x}, ["z"]),
        ({"w": x}, ["y"]),
        ({"x": x.reshape(4)}, ["y"]),
        ({"x": x.astype(np.int32)}, ["y"]),
        ({"x": x + 1}, ["y"]),
        ({"x": text}, ["y"]),
        ({"x": np.array([b"a", b"bc"], object)}, ["y"]),
    ]
    assert len({ResponseCache.key(*request) for request in different}) == len(different)
    assert ResponseCache.key({"x": x}, ["y"]) == ResponseCache.key({"x": x.copy()}, ["y"])


def test_the_cache_does_not_keep_the_batch_that_an_answer_is_a_view_of():
    cache = ResponseCache()
    batch = np.arange(1 << 16, dtype=np.float32).reshape(-1, 4)
    cache.keep(b"row", cache.copied([batch[3:4]]))
    (kept,) = cache.find(b"row")
    batch[3] = 0
    np.testing.assert_array_equal(kept, [[12, 13, 14, 15]])
    assert kept.base is None


def test_strings_of_as_many_dimensions_as_there_can_be_are_kept():
    cache, answer = ResponseCache(), np.full((1,) * 64, b"a", object)
    cache.keep(b"key", cache.copied([answer]))
    assert cache.find(b"key")[0].tolist() == answer.tolist()


def _held(answers):
    """The memory in bytes that a cache of 1 MiB takes when it is full of ``answers``."""
    tracemalloc.start()
    cache = ResponseCache(limit_bytes=1 << 20)
    before = tracemalloc.get_traced_memory()[0]
    for number, answer in enumerate(answers):
        cache.keep(b"%032d" % number, cache.copied(answer))
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert cache.find(b"%032d" % 0) is None
    return held


def test_a_full_cache_takes_the_memory_that_it_counts():
    rows = np.arange(1 << 16, dtype=np.float32).reshape(-1, 4)
    assert 0.7 < _held([rows[at : at + 1]] for at in range(4000)) / (1 << 20) < 1.1
    assert 0.7 < _held([np.full((1000,), at, np.float32)] for at in range(400)) / (1 << 20) < 1.1
    texts = (np.array([b"%d %d" % (at, element) for element in range(50)], object) for at in range(400))
    assert 0.7 < _held([text] for text in texts) / (1 << 20) < 1.1
