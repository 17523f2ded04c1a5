"""Options of the CUDA provider: what config.pbtxt may say, in onnxruntime's words or Triton's numbers."""

from __future__ import annotations

import pytest

from normfold.serving.catalog import config
from normfold.serving.errors import ConfigError
from normfold.serving.runtime import cuda_options
from normfold.serving.runtime.settings import SessionSettings


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("cudnn_conv_algo_search", "0", "EXHAUSTIVE"),
        ("cudnn_conv_algo_search", "1", "HEURISTIC"),
        ("cudnn_conv_algo_search", "2", "DEFAULT"),
        ("cudnn_conv_algo_search", "DEFAULT", "DEFAULT"),
        ("arena_extend_strategy", "0", "kNextPowerOfTwo"),
        ("arena_extend_strategy", "1", "kSameAsRequested"),
        ("do_copy_in_default_stream", "0", "0"),
        ("use_tf32", "1", "1"),
        ("gpu_mem_limit", "2147483648", "2147483648"),
    ],
)
def test_triton_numbers_and_onnxruntime_words_mean_the_same(name, text, value):
    written = config.parse(f'parameters {{ key: "{name}" value {{ string_value: "{text}" }} }}')
    assert config.check(written, "m") == []
    assert config.settings(written, SessionSettings()).cuda_options == ((name, value),)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("cudnn_conv_algo_search", "3", r"one of EXHAUSTIVE \(or 0\), HEURISTIC \(or 1\), DEFAULT \(or 2\), got '3'"),
        ("arena_extend_strategy", "heuristic", "kNextPowerOfTwo"),
        ("use_tf32", "true", "must be one of 0, 1, got 'true'"),
        ("gpu_mem_limit", "0", "number of bytes, at least 1"),
        ("gpu_mem_limit", "2GB", "number of bytes"),
        ("gpu_mem_limit", str(1 << 64), "number of bytes"),
        ("gpu_mem_limit", "9" * 5000, "number of bytes, at least 1, got '999"),
    ],
)
def test_other_values_are_refused_before_a_session_is_made(name, text, words):
    with pytest.raises(ConfigError, match=words):
        cuda_options.read(name, text)


def test_a_mistyped_option_is_refused_with_the_nearest_name():
    written = config.parse('parameters { key: "use_tf23" value { string_value: "0" } }')
    with pytest.raises(ConfigError, match="did you mean 'use_tf32'"):
        config.check(written, "m")


def test_what_is_set_by_default_is_a_value_that_may_be_written():
    for name, value in cuda_options.DEFAULTS.items():
        assert cuda_options.read(name, value) == value
