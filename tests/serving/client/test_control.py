"""The quantiles of a histogram by bits, and the configuration that puts a version in service."""

from __future__ import annotations

import json

import numpy as np
import pytest

from normfold.protos import model_config as mc
from normfold.serving.client.control import checked_number, quantile, with_versions


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_a_quantile_is_within_a_factor_of_two_of_the_true_one(share):
    durations = np.random.default_rng(0).lognormal(12, 1.5, 10_000).astype(int)
    counts = np.bincount([int(ns).bit_length() for ns in durations])
    true = np.quantile(durations, share, method="inverted_cdf") / 1e9
    assert true / 2 <= quantile(counts, share) <= true * 2


def test_without_requests_there_is_no_quantile():
    assert quantile([], 0.5) is None
    assert quantile([0, 0], 0.5) is None
    assert quantile([5], 0.5) == 0


def test_only_the_version_policy_changes():
    config = mc.ModelConfig(name="m", max_batch_size=8)
    config.parameters["a"].string_value = "kept"
    config.parameters["normfold.proved"].string_value = "what the server itself adds"
    config.version_policy.all.SetInParent()
    changed = json.loads(with_versions(config, [3]))
    assert changed["version_policy"] == {"specific": {"versions": ["3"]}}
    assert (changed["name"], changed["max_batch_size"]) == ("m", 8)
    assert list(changed["parameters"]) == ["a"]
    assert config.version_policy.HasField("all")


@pytest.mark.parametrize("wrong", ["0", "-1", "x", "", "1.5", "²", "9" * 5000])
def test_a_version_is_a_number(wrong):
    with pytest.raises(ValueError, match="is not a number such as 1"):
        checked_number(wrong)
