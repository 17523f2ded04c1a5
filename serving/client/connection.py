"""How a client connects: in plain text or with TLS, and with which token."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, NoReturn

from normfold.serving.client.arguments import checked_text

if TYPE_CHECKING:
    import ssl

#: A server that speaks gRPC agrees to this protocol in the handshake (ALPN).
_PROTOCOL = "h2"


@dataclass(frozen=True)
class ClientTls:
    """TLS of a client. Files are in PEM.

    >>> ClientTls(ca="ca.pem").server_name
    ''
    """

    #: The certificates that sign those of servers; None: those of this system.
    ca: str | PathLike[str] | None = None
    #: The client's certificate and its key, for a server that wants one; None: the client has none.
    cert: str | PathLike[str] | None = None
    key: str | PathLike[str] | None = None
    #: The name that the server's certificate must have; "": the host of the address.
    server_name: str = ""

    def context(self) -> ssl.SSLContext:
        """The TLS of a connection that Python makes. Raises ValueError for files that cannot be used."""
        import ssl  # here, because a client without TLS need not load it

        if (self.cert is None) != (self.key is None):
            raise ValueError("the client's certificate and its key belong together: give both, cert and key")
        context = ssl.create_default_context(cafile=None if self.ca is None else self._checked("ca", self.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if hasattr(ssl, "VERIFY_X509_STRICT"):  # Python 3.13 refuses certificates that gRPC takes
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.set_alpn_protocols([_PROTOCOL])
        if self.cert is not None and self.key is not None:
            cert, key = self._checked("cert", self.cert), self._checked("key", self.key)
            try:
                context.load_cert_chain(cert, key, password=_no_passphrase)
            except (OSError, ValueError) as error:
                from normfold.plain_file import why_no_pair

                why = why_no_pair(getattr(error, "reason", None) or str(error))
                raise ValueError(
                    f"cert {cert} and key {key} (--tls-cert, --tls-key) cannot be used together: {why}; expected a "
                    "certificate and its key without a passphrase"
                ) from None
        return context

    def credentials(self) -> Any:
        """The TLS of a channel of grpcio. Raises as ``context``."""
        import ssl
        from pathlib import Path

        import grpc

        self.context()
        ca = self.ca if self.ca is not None else ssl.get_default_verify_paths().cafile
        return grpc.ssl_channel_credentials(
            None if ca is None else Path(ca).read_bytes(),
            None if self.key is None else Path(self.key).read_bytes(),
            None if self.cert is None else Path(self.cert).read_bytes(),
        )

    def options(self) -> list[tuple[str, str]]:
        """The options of a channel of gRPC."""
        if not self.server_name:
            return []
        return [("grpc.ssl_target_name_override", self.server_name), ("grpc.default_authority", self.server_name)]

    def host(self, address: str) -> str:
        """The name that the certificate of the server at ``address`` must have."""
        if self.server_name or address.startswith("unix:"):
            return self.server_name or "localhost"
        return address.rpartition(":")[0].strip("[]")

    @staticmethod
    def _checked(name: str, path: str | PathLike[str]) -> str:
        from pathlib import Path

        from normfold.plain_file import CERTIFICATE, KEY, read_pem

        try:
            read_pem(Path(path), KEY if name == "key" else CERTIFICATE)
        except (OSError, TypeError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ValueError(f"{name} (--tls-{name}) {path} cannot be read: {why}") from None
        return str(path)


@dataclass(frozen=True)
class Credentials:
    """The token that a client shows to a server, and the TLS of the connection; None where there is none."""

    tls: ClientTls | None = None
    token: str | None = None


def checked_tls(tls: ClientTls | None) -> ClientTls | None:
    """``tls`` if it says how to connect. Raises ValueError."""
    if isinstance(tls, ClientTls):
        if not isinstance(tls.server_name, str):
            raise ValueError(f"server_name {tls.server_name!r} is not the name of a host, such as 'example.org'")
        checked_text("server_name", tls.server_name)
    if tls is None or isinstance(tls, ClientTls):
        return tls
    if isinstance(tls, (str, PathLike)):
        raise ValueError(f"tls {tls!r} is not a ClientTls: for a file of certificates write tls=ClientTls(ca={tls!r})")
    raise ValueError(
        f"tls {tls!r} is not a ClientTls: write tls=ClientTls() to trust the certificates of this system, or "
        "tls=ClientTls(ca='ca.pem'); leave it out to connect in plain text"
    )


def token_header(token: str | None) -> tuple[tuple[str, str], ...]:
    """The header that carries ``token``; none without one. Raises ValueError for a text that cannot be a token."""
    if token is None:
        return ()
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token or " " in token:
        raise ValueError("the token is not one word of ASCII characters, such as normfold token prints")
    return (("authorization", f"Bearer {token}"),)


def _no_passphrase() -> str:
    """Called only for a key with a passphrase; without this function OpenSSL would ask for it at the terminal."""
    raise ValueError("the key has a passphrase")


def no_pickling(client: object) -> NoReturn:
    """Raise TypeError: a client has connections, and perhaps a token, which no other process may get."""
    raise TypeError(f"{type(client).__name__} has connections, so it cannot be pickled: make one in each process")
