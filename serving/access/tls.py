"""TLS of the server: its certificate, and whose certificates a client must have. Read again when the files change."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from normfold.plain_file import CERTIFICATE, KEY, read_pem, why_no_pair
from normfold.serving.errors import StartError

#: For TLS 1.2; those of TLS 1.3 are all good. RFC 9113, appendix A, forbids the others.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
#: The protocol that a client must agree to in the handshake (ALPN).
PROTOCOL = "h2"


@dataclass(frozen=True)
class TlsFiles:
    """The files of TLS, in PEM."""

    #: The server's certificate, followed by those between it and the root.
    cert: Path
    #: Its key, without a passphrase.
    key: Path
    #: The certificates that sign those of clients; None: clients need none.
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        return (self.cert, self.key) if self.client_ca is None else (self.cert, self.key, self.client_ca)

    def read(self) -> TlsIdentity:
        """The contents of the files now. Raises StartError when they cannot be read, or do not belong together."""
        cert = self._bytes("--tls-cert", self.cert, CERTIFICATE)
        key = self._bytes("--tls-key", self.key, KEY)
        client_ca = None if self.client_ca is None else self._bytes("--tls-client-ca", self.client_ca, CERTIFICATE)
        return TlsIdentity(self._context(), cert, key, client_ca)

    @staticmethod
    def _bytes(option: str, path: Path, mark: bytes) -> bytes:
        try:
            return read_pem(path, mark)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise StartError(f"{option} {path} cannot be read: {why}") from None

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols([PROTOCOL])
        # No tickets. But OpenSSL keeps the sessions of TLS 1.2 in this context, and Python cannot switch that off. They
        # end with the context when the files change. ``has_expired`` finds those whose certificate expired before.
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_passphrase)
        except (OSError, ValueError) as error:
            raise StartError(
                f"--tls-cert {self.cert} and --tls-key {self.key} cannot be used: {_why(error)}; expected a "
                "certificate and its key without a passphrase, both in PEM"
            ) from None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except (OSError, ValueError) as error:
                raise StartError(f"--tls-client-ca {self.client_ca} cannot be used: {_why(error)}") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True)
class TlsIdentity:
    """The contents of the files of TLS, and the context made of them; for both frontends."""

    context: ssl.SSLContext
    cert: bytes
    key: bytes
    client_ca: bytes | None


class Tls:
    """The TLS of a running server; ``identity`` is the one of new connections."""

    def __init__(self, identity: TlsIdentity) -> None:
        self.identity = identity

    def renew(self, identity: TlsIdentity) -> None:
        """Give new connections this identity; connections that are open keep theirs."""
        self.identity = identity


def has_expired(connection: ssl.SSLObject) -> bool:
    """Whether the client's certificate has expired; OpenSSL does not look at it again when a session is resumed."""
    certificate = connection.getpeercert()
    return certificate is not None and ssl.cert_time_to_seconds(str(certificate["notAfter"])) < time.time()


def _no_passphrase() -> str:
    """Called only for a key with a passphrase; without this function OpenSSL would ask for it at the terminal."""
    raise ValueError("the key has a passphrase")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return why_no_pair(error.reason or "it is not PEM")
    return getattr(error, "strerror", None) or str(error)
