"""The cache of responses: what it drops, and which requests it takes for equal."""

from __future__ import annotations

import numpy as np

from normfold.serving.scheduling.response_cache import ResponseCache


def test_the_cache_drops_what_was_used_longest_ago():
    cache = ResponseCache(limit_bytes=100)
    answers = {name: [np.full(10, ord(name), np.float32)] for name in "abc"}
    keys = {name: cache.key({"x": array[0]}, ["y"]) for name, array in answers.items()}
    for name in "ab":
        cache.keep(keys[name], answers[name])
    assert cache.find(keys["a"]) is answers["a"]
    cache.keep(keys["c"], answers["c"])
    assert cache.find(keys["b"]) is None
    assert cache.find(keys["a"]) is answers["a"]
    cache.keep(b"large", [np.zeros(100, np.float32)])
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
