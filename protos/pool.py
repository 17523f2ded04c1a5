"""The protocol's message classes, made from the compiled descriptors in a private pool.

Two packages that register ``inference.*`` in protobuf's default pool cannot be imported together ("duplicate symbol").
A private pool works beside any client library, in any order of import, with every protobuf from 6.33 on.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.resources import files
from types import ModuleType

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

#: The compiled descriptors of all .proto files of this package; a file comes after the files that it imports.
DESCRIPTORS = "descriptors.binpb"


@cache
def pool() -> DescriptorPool:
    """Return the private pool, with every .proto file of this package."""
    described = descriptor_pb2.FileDescriptorSet.FromString(files(__package__).joinpath(DESCRIPTORS).read_bytes())
    private = DescriptorPool()
    for file in described.file:
        private.Add(file)  # type: ignore[no-untyped-call]
    return private


def fill(module: str, file: str) -> None:
    """Put the message classes, enums and ``DESCRIPTOR`` of the .proto ``file`` into the imported ``module``."""
    target: ModuleType = sys.modules[module]
    descriptor = pool().FindFileByName(file)  # type: ignore[no-untyped-call]
    target.DESCRIPTOR = descriptor  # type: ignore[attr-defined]
    for name, message in descriptor.message_types_by_name.items():
        cls = message_factory.GetMessageClass(message)
        cls.__module__ = module  # so that pickle finds the class again
        setattr(target, name, cls)
        _nest(cls)
    for name, enum in descriptor.enum_types_by_name.items():
        setattr(target, name, EnumTypeWrapper(enum))
        for value in enum.values:
            setattr(target, value.name, value.number)


def _nest(cls: type[Message]) -> None:
    """Make the classes of the messages inside ``cls`` its attributes, which protobuf's pure Python leaves undone."""
    for name, message in cls.DESCRIPTOR.nested_types_by_name.items():
        if not hasattr(cls, name):
            setattr(cls, name, message_factory.GetMessageClass(message))
        _nest(getattr(cls, name))
