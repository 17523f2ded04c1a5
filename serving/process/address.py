"""The address that a server listens on, as text: "host:port" or "unix:/path"."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv6Address, ip_address

from normfold.digits import read_digits

UNIX = "unix:"


def check(address: str) -> None:
    """Raises ValueError unless ``address`` is "host:port" or "unix:/path"."""
    if not address.startswith(f"{UNIX}/") and not _is_port(address):
        raise ValueError(
            f"listen address {address!r} is not host:port, such as 127.0.0.1:8001, or unix:/path{_why(address, 8001)}"
        )


def check_port(address: str) -> None:
    """Raises ValueError unless ``address`` is "host:port"."""
    if not _is_port(address):
        raise ValueError(f"metrics address {address!r} is not host:port, such as 127.0.0.1:8002{_why(address, 8002)}")


def _is_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and "/" not in host and _is_host(host) and read_digits(port, 65535) is not None


def _is_host(text: str) -> bool:
    """Whether ``text`` is a name or an address, in brackets or not: one with colons must be of IPv6."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if bare and not {*":[]"} & {*bare}:
        return True
    with suppress(ValueError):
        return IPv6Address(bare).version == 6
    return False


def _why(address: str, usual: int) -> str:
    """The end of a sentence about an address that is refused: what is wrong with it. ``usual`` is the usual port."""
    host, colon, port = address.rpartition(":")
    if "://" in address:
        return f"; leave out {address.partition('://')[0]}://"
    if address.startswith(UNIX):
        return "; a path begins with /: unix:/run/normfold.sock"
    if not colon:
        return f"; did you mean 127.0.0.1:{port}?" if port.isdecimal() else ": it has no port"
    if not host:
        return f": it has no host; did you mean 127.0.0.1{address} or, for other hosts too, 0.0.0.0{address}?"
    if not _is_host(host):
        bare = address.strip("[]")
        return f"; did you mean [{bare}]:{usual}?" if _is_host(f"[{bare}]") else f": {host!r} is no host"
    return f": {port!r} is not a port from 0 to 65535"


def host_and_port(address: str) -> tuple[str, int]:
    """The two halves of "host:port", an IPv6 address without its brackets.

    >>> host_and_port("[::1]:8001")
    ('::1', 8001)
    """
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_local(address: str) -> bool:
    """Whether only programs on this host can reach a server that listens on ``address``."""
    if address.startswith(UNIX):
        return True
    host = host_and_port(address)[0]
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
