"""Admits calls by their tokens: ``Access.admit`` is asked once for each call, before its request is read."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from google.protobuf.message import Message

from normfold.serving.access.scopes import EVERY_MODEL, NO_MODEL, RIGHTS, WHOLE_SERVER, Right
from normfold.serving.access.tokens import Holder, digest
from normfold.serving.errors import InvalidRequest, PermissionDenied, Unauthenticated
from normfold.serving.rpc.methods import Method, WireUnary, parse
from normfold.serving.rpc.pieces import Answer
from normfold.serving.wire.outer_fields import text_field
from normfold.serving.wording import quoted

log = logging.getLogger(__name__)

#: The header that carries the token, and the word before it.
HEADER, SCHEME = "authorization", b"bearer "

#: What ``credential`` returns in place of a digest: there is no header, or it has no bearer token.
NO_TOKEN, NOT_BEARER = b"", b"?"

#: Up to this size a request is parsed for the name of its model; in a larger one, passing over the numbers is faster.
PARSED_BYTES = 1 << 15

_WHY = {
    NO_TOKEN: "this server wants a token in the header 'authorization: Bearer TOKEN', and the call has none",
    NOT_BEARER: "the header 'authorization' is there more than once, or is not 'Bearer TOKEN'",
}
_UNKNOWN = "the server does not know this token"


class Access:
    """The holders of tokens and what they may do; everybody else is refused. Used on the event loop only."""

    def __init__(self, holders: Mapping[bytes, Holder], health_without_token: bool = False) -> None:
        """``holders`` are those that ``read_tokens`` returns."""
        self._health = health_without_token
        self.renew(holders)

    def renew(self, holders: Mapping[bytes, Holder]) -> None:
        """Admit these holders from now on, and no others. There may be none: the last token can be taken back, too."""
        if not holders:
            log.warning("no token is left: nobody can come in")
        self._holders = dict(holders)
        #: The methods admitted so far, by the digest of the token and the path; only of holders, so it stays small.
        self._admitted: dict[tuple[bytes, str], Method] = {}

    def admit(self, method: Method, credential: bytes) -> Method:
        """The method as a call with this ``credential`` may use it. Raises Unauthenticated or PermissionDenied.

        For a token that is limited to some models, the method returned checks the model of each request. Streams ask
        again for each message, so a token that is taken back ends them.

        The digest of the token is looked up, never the token itself. So the time of the look-up does not reveal how
        much of a guessed token is right.
        """
        known = self._admitted.get((credential, method.path))
        if known is not None:
            return known
        try:
            return self._first(method, credential)
        except (Unauthenticated, PermissionDenied) as error:
            log.info("%s: %s: %s", method.path, error.status.name, error)
            raise

    def name(self, credential: bytes) -> str:
        """The name of the holder of the token with this digest; "" where there is none."""
        holder = self._holders.get(credential)
        return "" if holder is None else holder.name

    def _first(self, method: Method, credential: bytes) -> Method:
        right = RIGHTS.get(method.path)
        if right is not None and right.health and self._health:
            return method
        holder = self._holders.get(credential)
        if holder is None:
            raise Unauthenticated(_WHY.get(credential, _UNKNOWN))
        if right is None:
            raise PermissionDenied(f"{method.path} is open to no token")
        if right.scope not in holder.scopes:
            has = ", ".join(sorted(holder.scopes))
            raise PermissionDenied(f"token {quoted(holder.name)} has the scopes {has}; this call needs {right.scope}")
        if holder.models is not None and right.model == EVERY_MODEL:
            raise PermissionDenied(
                f"token {quoted(holder.name)} is for some models only; this call concerns the whole server"
            )
        admitted = self._bounded(method, credential, holder, right)
        self._admitted[credential, method.path] = admitted
        return admitted

    def _bounded(self, method: Method, credential: bytes, holder: Holder, right: Right) -> Method:
        """``method`` with a look at each request where that is needed."""
        limited = holder.models is not None and right.model is not NO_MODEL
        check = partial(_check_model, method, holder, right) if limited else _nothing
        if method.is_unary:
            return _unary(method, check) if limited else method

        def again(request: Any) -> None:
            self.admit(method, credential)
            check(request)

        async def requests(given: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for request in given:
                again(request)
                yield request

        if method.server_stream is not None:
            stream = method.server_stream

            async def answers(request: Message) -> AsyncIterator[Message]:
                check(request)
                async for answer in stream(request):
                    self.admit(method, credential)
                    yield answer

            return replace(method, server_stream=answers)
        if method.wire_each is not None:
            return replace(method, wire_each=_checked(method.wire_each, again))
        if method.wire_stream is not None:
            wire = method.wire_stream
            return replace(method, wire_stream=lambda given: wire(requests(given)))
        bidi = method.bidi_stream
        assert bidi is not None
        return replace(method, bidi_stream=lambda given: bidi(requests(given)))


def credential(values: Sequence[bytes]) -> bytes:
    """The digest of the token in the values of the header ``authorization``; NO_TOKEN or NOT_BEARER without one."""
    if not values:
        return NO_TOKEN
    if len(values) > 1 or values[0][: len(SCHEME)].lower() != SCHEME:
        return NOT_BEARER
    return digest(values[0][len(SCHEME) :].strip())


def _unary(method: Method, check: Callable[[Any], None]) -> Method:
    if method.wire_unary is not None:
        return replace(method, wire_unary=_checked(method.wire_unary, check), door=None)
    unary = method.unary
    assert unary is not None

    async def answer(request: Message) -> Message:
        check(request)
        return await unary(request)

    return replace(method, unary=answer)


def _checked(wire: WireUnary, check: Callable[[Any], None]) -> WireUnary:
    def answer(data: bytes) -> bytes | Awaitable[Answer]:
        check(data)
        return wire(data)

    return answer


def _nothing(request: bytes | Message) -> None:
    """Every model is allowed."""


def _check_model(method: Method, holder: Holder, right: Right, request: bytes | Message) -> None:
    """Raise PermissionDenied unless ``holder`` may use the model that ``request`` names."""
    assert holder.models is not None
    assert right.model
    if isinstance(request, bytes) and len(request) > PARSED_BYTES:
        numbers = [method.request.DESCRIPTOR.fields_by_name[field].number for field in right.model]
        try:  # the numbers and files in it are not read
            name = next((value for number in numbers if (value := text_field(request, number))), "")
        except ValueError as error:
            words = f"{len(request)} bytes that are not a {method.request.DESCRIPTOR.full_name} message: {error}"
            raise InvalidRequest(words) from None
    else:
        message = parse(method.request, request) if isinstance(request, bytes) else request
        name = next((value for field in right.model if (value := getattr(message, field))), "")
    if name in holder.models or (right.model == ("service",) and name in WHOLE_SERVER):
        return
    what = f"the model {quoted(name)}" if name else "a call that names no model"
    raise PermissionDenied(f"token {quoted(holder.name)} does not allow {what}")
