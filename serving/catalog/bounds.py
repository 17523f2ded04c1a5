"""Upper bounds of the numbers in a config.pbtxt, so that a few bytes cannot take gigabytes or hours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from normfold.serving.catalog import version_text

#: The largest number of rows in a batch, of priority levels, of instances in a group, and of runs of a whole warm-up.
ROWS, LEVELS, INSTANCES, WARMUP_RUNS = 1 << 20, 256, 1024, 1000
#: The longest delay of a batch and the longest wait in a queue, in microseconds: an hour and a day.
DELAY_US, WAIT_US = 3_600_000_000, 86_400_000_000
#: The largest size of a dimension, and the largest number of elements of one warm-up input.
SIZE, WARMUP_ELEMENTS = 1 << 40, 1 << 26
#: The largest number of entries of a repeated field.
ENTRIES = 4096

#: The largest value of each integer, by "Message.field".
LARGEST: Mapping[str, int] = {
    "ModelConfig.max_batch_size": ROWS,
    "ModelDynamicBatching.preferred_batch_size": ROWS,
    "ModelDynamicBatching.max_queue_delay_microseconds": DELAY_US,
    "ModelDynamicBatching.priority_levels": LEVELS,
    "ModelDynamicBatching.default_priority_level": LEVELS,
    "PriorityQueuePolicyEntry.key": LEVELS,
    "ModelQueuePolicy.default_timeout_microseconds": WAIT_US,
    "ModelQueuePolicy.max_queue_size": 1 << 24,
    "ModelInstanceGroup.count": INSTANCES,
    "ModelInstanceGroup.gpus": INSTANCES,
    "ModelInput.dims": SIZE,
    "ModelOutput.dims": SIZE,
    "ModelTensorReshape.shape": SIZE,
    "Input.dims": SIZE,
    "ModelWarmup.batch_size": ROWS,
    "ModelWarmup.count": WARMUP_RUNS,
    "Latest.num_versions": 1 << 20,
    "Specific.versions": version_text.LARGEST,
}
#: The bound of every other integer: this server refuses or ignores these fields, whatever their value.
OTHER = 1 << 31

_NO_NUMBERS = (FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_BOOL, FieldDescriptor.CPPTYPE_ENUM)


def exceeded(message: Message, place: str = "") -> Iterator[str]:
    """A sentence for every number in ``message`` above its bound, and for every list that is too long."""
    for field, value in message.ListFields():
        shown = f"{place}{field.name}"
        if field.is_repeated and len(value) > ENTRIES:
            yield f"{shown} must have at most {ENTRIES} entries, got {len(value)}"
        elif _is_map(field):
            key_field = field.message_type.fields_by_name["key"]
            for key, entry in value.items():
                yield from _of(key_field, key, shown)
                yield from _of(field.message_type.fields_by_name["value"], entry, shown)
        else:
            for each in value if field.is_repeated else (value,):
                yield from _of(field, each, shown)


def _of(field: FieldDescriptor, value: Any, shown: str) -> Iterator[str]:
    if isinstance(value, Message):
        yield from exceeded(value, f"{shown}.")
    elif field.cpp_type not in _NO_NUMBERS:
        largest = LARGEST.get(f"{field.containing_type.name}.{field.name}", OTHER)
        if value > largest:
            yield f"{shown} must be at most {largest}, got {value}"


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
