"""Every number of a config.pbtxt has an upper bound."""

from __future__ import annotations

import re

import pytest
from google.protobuf.descriptor import FieldDescriptor

from normfold.protos import model_config as mc
from normfold.serving.catalog.bounds import ENTRIES, LARGEST, exceeded
from normfold.serving.catalog.config import check, parse
from normfold.serving.errors import ConfigError

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
        (f"version_policy {{ specific {{ versions: [{', '.join(['1'] * 5000)}] }} }}", f"at most {ENTRIES} entries"),
    ],
)
def test_a_number_above_its_bound_is_refused_by_its_name(text, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        check(parse(text), "m")


def numbers(message, seen=()):
    """Every integer field that a configuration can have, with a message that has its largest value."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None:
            if field.cpp_type in TOP:
                one = type(message)()
                if field.is_repeated:
                    getattr(one, field.name).append(TOP[field.cpp_type])
                else:
                    setattr(one, field.name, TOP[field.cpp_type])
                yield field, one
        elif field.message_type.full_name not in seen and not field.message_type.GetOptions().map_entry:
            inner = getattr(type(message)(), field.name)
            inner = inner.add() if field.is_repeated else inner
            yield from numbers(type(inner)(), (*seen, field.message_type.full_name))


FOUND = list(numbers(mc.ModelConfig()))


@pytest.mark.parametrize(("field", "message"), FOUND, ids=[field.full_name for field, _ in FOUND])
def test_the_largest_value_of_every_integer_is_above_its_bound_or_cannot_be_above_it(field, message):
    bound = LARGEST.get(f"{field.containing_type.name}.{field.name}")
    assert bool(list(exceeded(message))) == (bound is not None or TOP[field.cpp_type] > 1 << 31)


def test_the_walk_found_the_numbers_that_have_bounds_of_their_own():
    names = {f"{field.containing_type.name}.{field.name}" for field, _ in FOUND}
    # These lie in maps; the test of the names has one of each.
    assert set(LARGEST) - names == {"PriorityQueuePolicyEntry.key", "Input.dims"}
