"""Why no connection came about, in the words that a person reads; each is UNAVAILABLE."""

from __future__ import annotations

import errno
import os
import socket

from normfold.serving.client.transport.answers import Reply
from normfold.serving.errors import Status

EXPIRED = Reply(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")
CLOSED = Reply(Status.CANCELLED, "the client was closed")
#: The reply to calls that an AsyncClient has left on another event loop that still runs.
MOVED = Reply(Status.CANCELLED, "the client is used on another event loop now")
#: How servers of HTTP/1 answer HTTP/2: with a line of theirs, or, as Python's own, with a page alone.
_HTTP1 = (b"HTTP/1.", b"<")
#: The sentence about them.
_SPEAKS_HTTP1 = (
    "that is HTTP/1, as of a proxy or a port for metrics; gRPC is on the port of normfold serve --listen, "
    "by default 8001"
)
#: How OpenSSL calls bytes that are no TLS.
_PLAIN = "wrong version number"
#: How the system says that the peer of a connection acknowledges nothing any more (dialling.py).
_OUT_OF_REACH = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
#: Words of OpenSSL and of gRPC about a certificate that was refused, and what to say; {} is the address.
_REFUSALS = (
    (
        ("mismatch", "not in peer certificate", "hostname verification"),
        "the certificate of the server at {} is for another name: give the name that it has, with --tls-server-name "
        "NAME or ClientTls(server_name=…), or ask at an address that is in it",
    ),
    (
        ("has expired", "certificate_expired"),
        "the certificate of the server at {} has expired: the server needs a new one",
    ),
    (
        ("self-signed", "self signed", "unable to get", "unable_to_get"),
        "no authority that this client knows signed the certificate of the server at {}: give the certificates that "
        "did, with --tls-ca FILE or ClientTls(ca=…)",
    ),
    (
        ("alert unknown ca", "alert_unknown_ca"),
        "the server at {} does not accept this client's certificate: an authority of the server's --tls-client-ca must "
        "have signed it",
    ),
    (
        ("certificate required", "certificate_required"),
        "the server at {} wants a certificate of this client: give one with --tls-cert FILE and --tls-key FILE, or "
        "ClientTls(cert=…, key=…)",
    ),
)


def refused(address: str, why: str) -> Reply:
    """Nothing listens there, or nothing can be reached."""
    return _unavailable(f"no server answers at {address} ({why}); start one with: normfold serve --repository DIR")


def unknown_host(address: str, why: str) -> Reply:
    """The name has no address."""
    return _unavailable(f"the host in {address} is not known here; is its name right? ({why})")


def no_tls(address: str, why: str) -> Reply:
    """Server and client do not agree on TLS."""
    if why.endswith(_PLAIN):
        return _unavailable(f"{address} answers without TLS; leave out tls=… and the options --tls, --tls-…")
    for words, said in _REFUSALS:
        if any(word in why.lower() for word in words):
            return _unavailable(f"{said.format(address)} ({why})")
    return _unavailable(
        f"{address} and this client found no way to use TLS together ({why}); does the server have TLS, "
        "did an authority of --tls-ca or ClientTls(ca=…) sign its certificate, is the certificate for this name, and "
        "does it want one of the client?"
    )


def wants_tls(address: str, why: str) -> Reply:
    """A server that ends a connection in plain text at once."""
    return _unavailable(f"no server answers at {address} in plain text ({why}); does it want TLS (tls=…, --tls-ca)?")


def no_ping(address: str) -> Reply:
    """A server that was silent, and then did not answer a ping."""
    return _unavailable(f"the server at {address} answers no ping")


def ended(address: str, code: int | None, settled: bool, tls: bool) -> Reply:
    """A connection has ended: with the error ``code`` of the system, or because the server closed it.

    ``settled``: the server's SETTINGS have come before. ``tls``: the connection has TLS.
    """
    if code is not None and code in _OUT_OF_REACH:
        return _unavailable(f"the server at {address} can no longer be reached ({os.strerror(code)})")
    if settled:
        return _unavailable(f"the server at {address} closed the connection")
    return (no_tls if tls else wants_tls)(address, "it closed the connection")


def full(address: str, seconds: float) -> Reply:
    """The server's connections have had no room for a stream."""
    return _unavailable(f"the server at {address} has not taken one more call for {seconds:.0f} s")


def not_grpc(address: str, first: bytes, why: str) -> Reply:
    """The first bytes of what listens there are not those of a gRPC server."""
    line = first.lstrip().split(b"\n", 1)[0][:60].decode("ascii", "replace").rstrip()
    if first.lstrip().startswith(_HTTP1):
        why = f"it answers {line!r}: {_SPEAKS_HTTP1}"
    elif len(line) > 2 and line.isascii() and line.isprintable():
        why = f"it answers {line!r}, which is not HTTP/2"
    return _unavailable(f"no gRPC server answers at {address} ({why})")


def not_http2(address: str, why: str) -> Reply:
    """What listens there is no gRPC server; only grpcio has seen its first bytes."""
    return _unavailable(f"no gRPC server answers at {address} ({why}; perhaps {_SPEAKS_HTTP1})")


def of_error(address: str, error: OSError) -> Reply:
    """The failure behind the exception of a connection attempt."""
    if isinstance(error, socket.gaierror):
        return unknown_host(address, error.strerror or str(error))
    if type(error).__module__ == "ssl":
        return no_tls(address, tls_words(error))
    if error.errno is not None and error.errno > 0:
        return refused(address, os.strerror(error.errno))
    return refused(address, error.strerror or str(error) or "it ended the connection")


def tls_words(error: OSError) -> str:
    """The reason in an exception of ``ssl``, such as "handshake: self-signed certificate"."""
    why = getattr(error, "verify_message", "") or getattr(error, "reason", None) or str(error)
    return f"handshake: {str(why).lower().replace('_', ' ')}"


def _unavailable(details: str) -> Reply:
    return Reply(Status.UNAVAILABLE, details)
