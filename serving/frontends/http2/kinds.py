"""Which kind of call a method has."""

from __future__ import annotations

from normfold.serving.frontends.http2.each_call import EachCall
from normfold.serving.frontends.http2.logged_calls import LoggedEachCall, LoggedStreamCall, LoggedUnaryCall
from normfold.serving.frontends.http2.stream_call import StreamCall
from normfold.serving.frontends.http2.unary_call import UnaryCall
from normfold.serving.rpc.methods import Method

Kind = type[UnaryCall | EachCall | StreamCall]


def kind_of(method: Method) -> Kind:
    """The class of the calls of ``method``."""
    if method.is_unary:
        return UnaryCall
    return StreamCall if method.wire_each is None else EachCall


def logged_kind_of(method: Method) -> Kind:
    """The same with the access log."""
    if method.is_unary:
        return LoggedUnaryCall
    return LoggedStreamCall if method.wire_each is None else LoggedEachCall
