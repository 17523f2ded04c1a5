"""config.pbtxt as text: read in one place, because protobuf's own reader leaves some mistakes to its caller."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from normfold.protos import model_config as mc

#: protobuf's words for a name that it does not know, with the full name of its message or enum.
_NO_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "(\w{1,100})"')
_NO_VALUE = re.compile(r'Enum type "([\w.]+)" has no value named (\w{1,100})\.')
#: Where a bracket is none: a comment or a text.
_NO_BRACKETS = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""")


def parse_config(text: str) -> mc.ModelConfig:
    """The configuration in ``text``. Raises text_format.ParseError, with a line where protobuf tells it."""
    try:
        config = text_format.Parse(text, mc.ModelConfig())
    except text_format.ParseError as error:
        if hint := _meant(str(error)) or _unclosed(str(error), text):
            said = str(error).partition(" : ")[2]
            raise text_format.ParseError(f"{said}{hint}", error.GetLine(), error.GetColumn()) from None
        raise
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


def _meant(said: str) -> str:
    """The end of a sentence about a name that protobuf does not know; "" where none is like it."""
    file = mc.ModelConfig.DESCRIPTOR.file
    pool = file.pool
    if found := _NO_FIELD.search(said):
        # what is a name in another message is hardly mistyped: max_queue_size is no max_batch_size
        elsewhere = any(found[2] in message.fields_by_name for message in file.message_types_by_name.values())
        fields = [*pool.FindMessageTypeByName(found[1]).fields_by_name]
        names = difflib.get_close_matches(found[2].lower(), fields, n=1, cutoff=0.9 if elsewhere else 0.6)
    elif found := _NO_VALUE.search(said):
        known = [*pool.FindEnumTypeByName(found[1]).values_by_name]
        name = found[2].upper().replace("BFLOAT", "BF").replace("FLOAT", "FP")  # TYPE_FP32 is float32 elsewhere
        names = [one for one in known if f"_{one}".endswith(f"_{name}")]
        if len(names) != 1:  # a value that is only like it, such as TYPE_BOOL for TYPE_DOUBLE, means something else
            return f" Expected one of {', '.join(known)}"
    else:
        return ""
    return f" Did you mean {names[0]}?" if names else ""


def _unclosed(said: str, text: str) -> str:
    """The end of a sentence about another character than expected, where a bracket is missing."""
    if "Expected " in said:
        text = _NO_BRACKETS.sub("", text)
        for first, last in ("{}", "[]"):
            if text.count(first) != text.count(last):
                return f" The file has {text.count(first)} '{first}' and {text.count(last)} '{last}'"
    return ""
