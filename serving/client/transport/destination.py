"""An address as gRPC writes it, and where to connect for it (grpc/doc/naming.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from normfold.digits import read_digits

#: gRPC's port for a name without one.
_PORT = 443
#: A host and port that a header can carry as it is.
_PLAIN = re.compile(r"[A-Za-z0-9._:\[\]-]+")
_LISTS = ("ipv4", "ipv6")


@dataclass(frozen=True)
class Endpoint:
    """Where a server is, and what it is called in requests.

    >>> destination("dns:///example.org:8001").places, destination("unix:/tmp/s").path
    ((('example.org', 8001),), '/tmp/s')
    """

    #: Host and port of each place, which are tried in this order.
    places: tuple[tuple[str, int], ...]
    #: The path of a Unix socket instead of places; it begins with NUL for an abstract one.
    path: str
    #: The header ``:authority``.
    authority: str

    @property
    def host(self) -> str:
        """The name that the server's certificate must have."""
        return self.places[0][0] if self.places else "localhost"


def destination(address: str) -> Endpoint:
    """The places of ``address``: "host:port", "unix:/path", or with gRPC's schemes dns, ipv4, ipv6, unix-abstract.

    Raises ValueError for another scheme: those need ``transport="grpcio"``.
    """
    scheme, colon, rest = address.partition(":")
    if colon and scheme == "unix":
        return Endpoint((), rest.removeprefix("//"), "localhost")
    if colon and scheme == "unix-abstract":
        return Endpoint((), "\0" + rest, "localhost")
    if colon and scheme in ("vsock", "xds"):
        raise ValueError(f"address {address!r}: only transport='grpcio' takes addresses that begin with {scheme}:")
    if colon and scheme == "dns":
        if rest.startswith("//"):
            asked, _, rest = rest[2:].partition("/")
            if asked:
                raise ValueError(
                    f"address {address!r}: only transport='grpcio' asks a name server of its own; write dns:///{rest}"
                )
        return _named(address, [rest])
    if colon and scheme in _LISTS:
        return _named(address, rest.removeprefix("///").split(","))
    return _named(address, [address])


def _named(address: str, hosts: list[str]) -> Endpoint:
    places = tuple(_place(address, host) for host in hosts)
    authority = hosts[0]
    if not _PLAIN.fullmatch(authority):
        from urllib.parse import quote  # here, because it takes long to load

        authority = quote(authority, safe=":[]")
    return Endpoint(places, "", authority)


def _place(address: str, text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or (text.startswith("[") and text.endswith("]")) or (":" in host and not host.startswith("[")):
        host, port = text, str(_PORT)  # without a port
    if not host or not read_digits(port, 65535):
        raise ValueError(f"address {address!r}: {text!r} is not host:port, such as 127.0.0.1:8001, or unix:/path")
    return host.strip("[]"), int(port)
