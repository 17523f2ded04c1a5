"""Messages of any protocol-buffer type, drawn from its descriptor, and good ones with some things changed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

#: Numbers at which something may turn over.
NUMBERS = (
    *(0, 1, 2, 3, 4, 8, 9, -1, 127, 128, 255, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    *(1 << 62, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1),
)
STRINGS = (
    *("", "x", "y", "z", "a", "b", "m", "1", "2", "-1", "nope", "\n", "\0", "../..", "\xe9" * 50, "\u202e", "a" * 3000),
    *("FP32", "INT64", "BYTES", "BOOL", "FP16", "fp32", "0.5", "nan", "TYPE_FP32", "priority", "timeout"),
    *("classification", "binary_data", "binary_data_output"),
    *("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"),
)
FLOATS = (0.0, 1.0, -1.5, 1e30, float("inf"), float("nan"), 5e-324)

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
#: Messages are drawn within messages at most this deep.
DEPTH = 4


class Grammar:
    """Draws by ``chance``; ``strings`` are more words that mean something to the reader."""

    def __init__(self, chance: random.Random, strings: tuple[str, ...] = ()) -> None:
        self.chance = chance
        self._strings = (*STRINGS, *strings * 3)

    def draw(self, kind: type[Message], depth: int = 0) -> Message:
        """A message with a few of its fields."""
        message = kind()
        fields = list(kind.DESCRIPTOR.fields)
        for field in self.chance.sample(fields, min(len(fields), self.chance.randint(0, 4))):
            self.redraw(message, field, depth)
        return message

    def redraw(self, message: Message, field: FieldDescriptor, depth: int = 0) -> None:
        """Give ``field`` of ``message`` another value."""
        message.ClearField(field.name)
        if field.message_type is not None and depth >= DEPTH:
            return
        count = self._count() if field.is_repeated else 1
        for _ in range(count):
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                self._entry(getattr(message, field.name), field, depth)
            elif field.message_type is not None:
                inner = getattr(message, field.name)
                inner = inner.add() if field.is_repeated else inner
                inner.MergeFrom(self.draw(type(inner), depth + 1))
                inner.SetInParent()
            elif field.is_repeated:
                getattr(message, field.name).append(self._value(field))
            else:
                setattr(message, field.name, self._value(field))

    def _count(self) -> int:
        return self.chance.choice((0, 1, 1, 1, 2, 3, 200)) if self.chance.random() < 0.2 else self.chance.randint(0, 2)

    def _entry(self, entries: Any, field: FieldDescriptor, depth: int) -> None:
        key_field, value_field = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        key = self._value(key_field)
        if value_field.message_type is None:
            entries[key] = self._value(value_field)
        else:
            entries[key].MergeFrom(self.draw(type(entries[key]), depth + 1))

    def _value(self, field: FieldDescriptor) -> Any:
        kind = field.cpp_type
        if kind in _INTEGERS:
            low, high = _INTEGERS[kind]
            number = self.chance.choice(NUMBERS) if self.chance.random() < 0.8 else self.chance.randint(low, high)
            return min(max(number, low), high)
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return self.chance.randbytes(self.chance.choice((0, 1, 4, 16, 32, 40)))
            return self.chance.choice(self._strings)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return self.chance.random() < 0.5
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return self.chance.choice(field.enum_type.values).number
        return self.chance.choice(FLOATS)

    def changed(self, message: Message) -> Message:
        """A copy of ``message`` in which one to four fields, anywhere, have other values, or an entry twice."""
        copy = type(message)()
        copy.CopyFrom(message)
        for _ in range(self.chance.randint(1, 4)):
            inner = self.chance.choice(list(_within(copy)))
            fields = list(inner.DESCRIPTOR.fields)
            there = [field for field, _ in inner.ListFields()]
            field = self.chance.choice(there if there and self.chance.random() < 0.7 else fields)
            plain = field.is_repeated and not (field.message_type and field.message_type.GetOptions().map_entry)
            if plain and len(getattr(inner, field.name)) and self.chance.random() < 0.3:
                values = getattr(inner, field.name)
                values.extend([self.chance.choice(values)])
            else:
                self.redraw(inner, field)
        return copy

    def broken(self, data: bytes) -> bytes:
        """``data`` with one to five bytes changed, added, taken away, or cut."""
        wire = bytearray(data or b"\0")
        for _ in range(self.chance.randint(1, 5)):
            at, kind = self.chance.randrange(len(wire)), self.chance.randrange(6)
            if kind == 0:
                wire[at] = self.chance.randrange(256)
            elif kind == 1:
                wire[at] ^= 1 << self.chance.randrange(8)
            elif kind == 2:
                wire[at:at] = self.chance.randbytes(self.chance.randint(1, 4))
            elif kind == 3:
                wire[at:at] = self.chance.choice((b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x0f", b"\x0b", b"\x0c"))
            elif kind == 4:
                end = min(len(wire), at + self.chance.randint(1, 40))
                wire[at:at] = wire[at:end]
            else:
                del wire[at : at + self.chance.randint(1, 20)]
                wire = wire or bytearray(b"\0")
        return bytes(wire)


def _within(message: Message) -> Iterator[Message]:
    """``message`` and every message in it that has fields."""
    if message.DESCRIPTOR.fields:
        yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            of_messages = field.message_type.fields_by_name["value"].message_type is not None
            entries = [value[key] for key in sorted(value)] if of_messages else []
        else:
            entries = value if field.is_repeated else (value,)
        for inner in entries:
            yield from _within(inner)
