"""Every number of a config.pbtxt has an upper bound."""

from __future__ import annotations

import re

import pytest
from google.protobuf.descriptor import FieldDescriptor

from normfold.protos import model_config as mc
from normfold.serving.catalog import bounds
from normfold.serving.catalog.bounds import exceeded
from normfold.serving.catalog.config import check, parse
from normfold.serving.errors import ConfigError

#: The largest value of each integer that has a bound of its own, written out: what LARGEST says is what is tested.
LARGEST = {
    "ModelConfig.max_batch_size": 1_048_576,
    "ModelDynamicBatching.preferred_batch_size": 1_048_576,
    "ModelDynamicBatching.max_queue_delay_microseconds": 3_600_000_000,
    "ModelDynamicBatching.priority_levels": 256,
    "ModelDynamicBatching.default_priority_level": 256,
    "ModelQueuePolicy.default_timeout_microseconds": 86_400_000_000,
    "ModelQueuePolicy.max_queue_size": 16_777_216,
    "ModelInstanceGroup.count": 1024,
    "ModelInstanceGroup.gpus": 1024,
    "ModelInput.dims": 1_099_511_627_776,
    "ModelOutput.dims": 1_099_511_627_776,
    "ModelTensorReshape.shape": 1_099_511_627_776,
    "ModelWarmup.batch_size": 1_048_576,
    "ModelWarmup.count": 1000,
    "Latest.num_versions": 1_048_576,
    "Specific.versions": 9_223_372_036_854_775_807,
}
#: The largest value of every other integer.
OTHER = 2_147_483_648

#: The largest value of each kind of integer.
TOP = {
    FieldDescriptor.CPPTYPE_INT32: 2**31 - 1,
    FieldDescriptor.CPPTYPE_INT64: 2**63 - 1,
    FieldDescriptor.CPPTYPE_UINT32: 2**32 - 1,
    FieldDescriptor.CPPTYPE_UINT64: 2**64 - 1,
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "max_batch_size: 8 dynamic_batching { priority_levels: 4294967295 default_priority_level: 1 }",
            "dynamic_batching.priority_levels must be at most 256, got 4294967295",
        ),
        ("max_batch_size: 2000000000", "max_batch_size must be at most 1048576, got 2000000000"),
        ("instance_group { count: 1000000 }", "instance_group.count must be at most 1024"),
        ('model_warmup { name: "w" count: 4000000000 }', "model_warmup.count must be at most 1000"),
        ('model_warmup { name: "w" batch_size: 4000000000 }', "model_warmup.batch_size must be at most"),
        ("model_warmup { count: 600 } model_warmup { count: 600 }", "at most 1000 together"),
        ('input { name: "x" dims: 9000000000000000000 }', "input.dims must be at most"),
        (
            "dynamic_batching { max_queue_delay_microseconds: 18446744073709551615 }",
            "dynamic_batching.max_queue_delay_microseconds must be at most 3600000000",
        ),
        (
            f"dynamic_batching {{ priority_queue_policy {{ value {{ default_timeout_microseconds: {10**18} }} }} }}",
            "dynamic_batching.priority_queue_policy.default_timeout_microseconds must be at most 86400000000",
        ),
        (
            f"dynamic_batching {{ priority_queue_policy {{ key: {10**18} value {{}} }} }}",
            "dynamic_batching.priority_queue_policy must be at most 256",
        ),
        (
            f'model_warmup {{ inputs {{ key: "x" value {{ dims: {10**18} }} }} }}',
            "model_warmup.inputs.dims must be at most",
        ),
        (
            f"version_policy {{ specific {{ versions: [{', '.join(['1'] * 4097)}] }} }}",
            "at most 4096 entries, got 4097",
        ),
    ],
)
def test_a_number_above_its_bound_is_refused_by_its_name(text, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        check(parse(text), "m")


def integers(message, seen=()):
    """Every integer field that a configuration can have outside maps, and the class of its message."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None:
            if field.cpp_type in TOP:
                yield field, type(message)
        elif field.message_type.full_name not in seen and not field.message_type.GetOptions().map_entry:
            inner = getattr(type(message)(), field.name)
            inner = inner.add() if field.is_repeated else inner
            yield from integers(type(inner)(), (*seen, field.message_type.full_name))


def name(field):
    return f"{field.containing_type.name}.{field.name}"


FOUND = {name(field): (field, kind) for field, kind in integers(mc.ModelConfig())}


def of(field, kind, value):
    message = kind()
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)
    return message


@pytest.mark.parametrize("found", FOUND)
def test_an_integer_may_be_as_large_as_its_bound_and_no_larger(found):
    field, kind = FOUND[found]
    bound, top = LARGEST.get(found, OTHER), TOP[field.cpp_type]
    assert list(exceeded(of(field, kind, min(bound, top)))) == []
    if top > bound:
        assert list(exceeded(of(field, kind, bound + 1))) == [f"{field.name} must be at most {bound}, got {bound + 1}"]


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("dynamic_batching {{ priority_queue_policy {{ key: {} value {{}} }} }}", 256),
        ('model_warmup {{ inputs {{ key: "x" value {{ dims: {} }} }} }}', 1_099_511_627_776),
    ],
)
def test_an_integer_in_a_map_has_its_bound_too(text, bound):
    assert list(exceeded(parse(text.format(bound)))) == []
    assert len(list(exceeded(parse(text.format(bound + 1))))) == 1


def test_no_integer_with_a_bound_of_its_own_was_left_out():
    in_maps = {"PriorityQueuePolicyEntry.key", "Input.dims"}
    assert set(LARGEST) <= set(FOUND)
    assert set(bounds.LARGEST) == set(LARGEST) | in_maps
