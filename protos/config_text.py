"""config.pbtxt as text: read in one place, because protobuf's own reader leaves some mistakes to its caller."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from normfold.protos import model_config as mc


def parse_config(text: str) -> mc.ModelConfig:
    """The configuration in ``text``. Raises text_format.ParseError, with a line where protobuf tells it."""
    try:
        config = text_format.Parse(text, mc.ModelConfig())
    except (ValueError, OverflowError, RecursionError) as error:  # such as a number beyond 32 bits for an enum
        raise text_format.ParseError(str(error)) from None
    for problem in unknown_numbers(config):
        raise text_format.ParseError(problem)
    return config


def unknown_numbers(message: Message, where: str = "") -> Iterator[str]:
    """A sentence for each field of ``message`` whose number has no name: protobuf keeps any number in an enum."""
    for field, value in message.ListFields():
        name = f"{where}{field.name}"
        values = value if field.is_repeated else (value,)
        if field.type == FieldDescriptor.TYPE_ENUM:
            known = field.enum_type.values_by_number
            for number in values:
                if number not in known:
                    names = ", ".join(sorted(each.name for each in known.values()))
                    yield f"{name} is {number}, expected one of {names}"
        elif field.message_type is None:
            continue
        elif not field.message_type.GetOptions().map_entry:
            for inner in values:
                yield from unknown_numbers(inner, f"{name}.")
        elif field.message_type.fields_by_name["value"].message_type is not None:
            for key in value:
                yield from unknown_numbers(value[key], f"{name}.")
