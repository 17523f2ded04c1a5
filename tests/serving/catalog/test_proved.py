"""The proved sizes in a file's metadata: wrong ones are a reason not to load, and batches stay within them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from onnx import parser

from normfold.serving.catalog.config import parse
from normfold.serving.catalog.load import LoadOptions, load
from normfold.serving.catalog.repository import ModelFolder
from normfold.serving.errors import LoadError
from normfold.serving.runtime.devices import Device
from normfold.serving.wire.proved_sizes import PROVED

MODEL = '<ir_version: 9, opset_import: ["": 18]> g (float[N,3,L] x) => (float[N,3,L] y) { y = Neg (x) }'
L = {"low": 8, "high": None, "step": 1, "tried": [8]}


def sizes(inputs, **dimensions):
    return json.dumps({"schema": 1, "dimensions": {"L": L, **dimensions}, "inputs": inputs})


def rows(low, high=None, step=1):
    return {"low": low, "high": high, "step": step, "tried": [low]}


@pytest.fixture
def loaded(tmp_path, models):
    """Load a model with this text in its metadata and this configuration."""

    def loaded(text, config="max_batch_size: 8 dynamic_batching {}", allow=False):
        model = parser.parse_model(MODEL)
        model.metadata_props.add(key=PROVED, value=text)
        models.write(tmp_path, model.SerializeToString())
        options = LoadOptions(Device("cpu"), cpus=1, allow_unproved_sizes=allow)
        with ThreadPoolExecutor(1) as executor:
            return load(ModelFolder("m", tmp_path), parse(config), 1, options, executor)

    return loaded


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "normfold.proved in the file's metadata cannot be used: it is not JSON"),
        (sizes({"x": ["M", 3, "L"]}), "input 'x': 'M' is neither a size nor a dimension"),
        (sizes({"w": ["L"]}), r"says that input 'w' is \['L'\], but the file has no such input"),
        (sizes({"x": ["L"]}), r"says that input 'x' is \['L'\], but the file has \[-1, 3, -1\]"),
        (sizes({"x": [1, 4, "L"]}), r"says that input 'x' is \[1, 4, 'L'\], but the file has \[-1, 3, -1\]"),
    ],
)
@pytest.mark.parametrize("allow", [False, True])
def test_sizes_that_cannot_be_used_are_the_reason_why_a_model_does_not_load(loaded, text, words, allow):
    with pytest.raises(LoadError, match=words):
        loaded(text, allow=allow)


@pytest.mark.parametrize(
    ("config", "limit", "preferred"),
    [
        ("max_batch_size: 8 dynamic_batching {}", 4, [4]),
        ("max_batch_size: 8 dynamic_batching { preferred_batch_size: [2, 6, 8] }", 4, [2, 4]),
        ("max_batch_size: 8", 4, []),
        ("max_batch_size: 3 dynamic_batching {}", 3, [3]),
    ],
)
def test_batches_are_no_larger_than_what_was_proved(loaded, config, limit, preferred):
    model = loaded(sizes({"x": ["N", 3, "L"]}, N=rows(1, 4)), config)
    assert (model.config.max_batch_size, model.contract.max_batch_size) == (limit, limit)
    assert list(model.config.dynamic_batching.preferred_batch_size) == preferred
    assert model.config.HasField("dynamic_batching") == ("dynamic_batching" in config)


def test_requests_are_not_joined_where_their_sum_was_not_proved(loaded):
    of_two = loaded(sizes({"x": ["N", 3, "L"]}, N=rows(2, None, 2)))
    of_three = loaded(sizes({"x": ["N", 3, "L"]}, N=rows(3, None, 2)))
    assert of_two.config.HasField("dynamic_batching")
    assert not of_three.config.HasField("dynamic_batching")


def test_with_all_sizes_allowed_the_batch_is_that_of_the_configuration(loaded):
    model = loaded(sizes({"x": ["N", 3, "L"]}, N=rows(1, 4)), allow=True)
    assert (model.config.max_batch_size, model.contract.proved) == (8, None)
