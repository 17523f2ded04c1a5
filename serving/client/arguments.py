"""The arguments of a client's calls, checked before anything is sent; each ValueError says what to write instead."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable
from numbers import Real
from typing import Any

from normfold.digits import read_digits

#: Schemes of gRPC's own that name a server in another way than "host:port"; gRPC reads them.
_SCHEMES = ("unix", "unix-abstract", "dns", "ipv4", "ipv6", "vsock", "xds")
_PORT = 8001
#: The protocol has versions as text; servers read them into 64 bits.
LARGEST_VERSION = (1 << 63) - 1
#: Longer timeouts mean none: they are cut to 23 days. ``poll`` takes no more than 2^31 ms, and gRPC no infinity.
LONGEST_SECONDS = 2e6


def checked_address(address: str) -> str:
    """``address`` if it is "host:port", "unix:/path" or another target of gRPC. Raises ValueError.

    gRPC itself takes 443 where the port is missing, and the port modulo 65536 where it is too large.
    """
    if not isinstance(address, str) or not address:
        raise ValueError(f"address {address!r} is not host:port, such as '127.0.0.1:{_PORT}', or unix:/path")
    checked_text("address", address)
    scheme, separator, rest = address.partition("://")
    if separator and scheme.lower() in ("http", "https", "grpc", "grpcs", "tcp"):
        target = rest.partition("/")[0]
        written = target if ":" in target else f"{target}:{_PORT}"
        raise ValueError(f"address {address!r}: leave out {scheme}://, an address is host:port: {written!r}")
    scheme, _, rest = address.partition(":")
    if scheme in _SCHEMES:
        if not rest.strip("/"):
            raise ValueError(
                f"address {address!r} ends after {scheme}:, expected a place, such as unix:/run/server.sock"
            )
        if scheme == "dns":
            _check_one(address, rest.removeprefix("///"))
        return address
    _check_one(address, address)
    host, colon, port = address.rpartition(":")
    if not colon:
        if address.isdecimal():
            raise ValueError(f"address {address!r} is not host:port: it has no host, such as '127.0.0.1:{address}'")
        raise ValueError(
            f"address {address!r} is not host:port: it has no port. normfold serve listens on port {_PORT} unless "
            f"--listen gives another: '{address}:{_PORT}'"
        )
    if ":" in host and not host.startswith("["):
        places = ((host, port), (address, _PORT)) if read_digits(port, 65535) else ((address, _PORT),)
        if meant := [f"'[{one}]:{number}'" for one, number in places if _is_ipv6(one)]:
            raise ValueError(
                f"address {address!r} is not host:port: write an IPv6 address in brackets: {', or '.join(meant)}"
            )
        if not _is_ipv6(host):
            raise ValueError(f"address {address!r} is not host:port: {host!r} is no host")
    if not host:
        raise ValueError(f"address {address!r} is not host:port: it has no host, such as '127.0.0.1{address}'")
    if not read_digits(port, 65535):
        raise ValueError(f"address {address!r} is not host:port: {port!r} is not a port from 1 to 65535")
    return address


def _is_ipv6(text: str) -> bool:
    from ipaddress import IPv6Address  # here, because an address that is right needs none of it

    try:
        return IPv6Address(text).version == 6
    except ValueError:
        return False


def _check_one(address: str, places: str) -> None:
    """Raise ValueError where ``places`` are several, which only the schemes of numbers can list."""
    if "," in places:
        written = f"{'ipv6' if places.startswith('[') else 'ipv4'}:{places}".replace(" ", "")
        raise ValueError(
            f"address {address!r} names several places. If these are addresses of one server, write {written!r}: the "
            "first that answers is used. Several servers need a balancer in front of them: give its address"
        )


def checked_model(model: str) -> str:
    """``model`` if it can be a name. Raises ValueError."""
    if not isinstance(model, str) or not model:
        raise ValueError(f"model {_shown(model)} is not a name; give the name of a served model, such as 'surnames'")
    return checked_text("model", model)


def checked_text(what: str, text: str) -> str:
    """``text``, which is ``what``, if it can be sent as UTF-8. Raises ValueError."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{what} {text!r} cannot be sent: its character {error.start}, {text[error.start]!r}, is half of one "
                "(a lone surrogate), which UTF-8 cannot write; give the whole character, or '?' in its place: "
                "text.encode(errors='replace').decode()"
            ) from None
    return text


def checked_request_id(request_id: str) -> str:
    """``request_id`` if it is a text; "" is none. Raises ValueError."""
    if request_id is None:
        return ""
    if not isinstance(request_id, str):
        cure = reprlib.repr(str(request_id))
        raise ValueError(f"request_id {_shown(request_id)} is not a text: give a str, such as {cure}")
    return checked_text("request_id", request_id)


def checked_version(version: str | int | None) -> str:
    """``version`` as the protocol writes it: digits, or "" for the highest version in service. Raises ValueError."""
    text = "" if version is None else str(version)
    if not text or read_digits(text, LARGEST_VERSION):
        return text
    raise ValueError(
        f"version {_shown(version)} is not a number from 1 up; leave it out for the version that the server chooses, "
        "which is the highest in service"
    )


def checked_timeout(timeout: float) -> float:
    """``timeout`` if it is a number of seconds above 0, and at most LONGEST_SECONDS of it. Raises ValueError.

    >>> import math
    >>> checked_timeout(5), checked_timeout(math.inf)
    (5.0, 2000000.0)
    """
    if not is_number(timeout) or not timeout > 0:
        raise ValueError(f"timeout {_shown(timeout)} is not a number of seconds above 0")
    return float(min(timeout, LONGEST_SECONDS))


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number: of Python or a scalar of NumPy, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def checked_in_flight(in_flight: int) -> int:
    """``in_flight`` if it is a number of inferences. Raises ValueError."""
    if _whole(in_flight) < 1:
        raise ValueError(f"in_flight {_shown(in_flight)} is not a number of inferences: give 1 or more")
    return int(in_flight)


def checked_top(top: int) -> int:
    """``top`` if it is a number of classes. Raises ValueError."""
    if _whole(top) < 1:
        raise ValueError(
            f"top {_shown(top)} is not a number of classes: give 1 or more; for the scores themselves call infer"
        )
    return int(top)


def checked_outputs(outputs: Iterable[str] | None) -> tuple[str, ...]:
    """The names in ``outputs``, which may also be one name; none where it is None. Raises ValueError.

    An iterator is used up by this: call it once, before anything else reads ``outputs``.
    """
    if outputs is None:
        return ()
    if not isinstance(outputs, Iterable):
        raise ValueError(f"outputs {_shown(outputs)} is not a list of names: give the names of outputs, such as ['y']")
    names: tuple[Any, ...] = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"outputs: {_shown(name)} is not the name of an output")
        checked_text("output", name)
    return names


def _whole(value: Any) -> int:
    """``value`` as an int; 0 where it is no whole number."""
    try:
        return 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return 0


def _shown(value: object) -> str:
    """``value`` for a message; short where it is no text, because it may be an array in the wrong place."""
    return repr(value) if isinstance(value, str) else reprlib.repr(value)
