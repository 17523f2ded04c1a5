"""Which kind of call a method has."""

from __future__ import annotations

from normfold.serving.frontends.http2.each_call import EachCall
from normfold.serving.frontends.http2.stream_call import StreamCall
from normfold.serving.frontends.http2.unary_call import UnaryCall
from normfold.serving.rpc.methods import Method


def kind_of(method: Method) -> type[UnaryCall | EachCall | StreamCall]:
    """The class of the calls of ``method``."""
    if method.is_unary:
        return UnaryCall
    return StreamCall if method.wire_each is None else EachCall
