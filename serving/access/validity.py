"""When the server's certificate is valid. It uses one that is not: clients refuse it, and the log says so."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

log = logging.getLogger(__name__)

#: So long before its end the log has a warning, once a day.
SOON = timedelta(days=14)
DAY_SECONDS = 86_400.0

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
#: The tags of DER for a date with two digits of the year and with four, and that of a certificate's version.
_FORMATS, _VERSION = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}, 0xA0


class Reminder:
    """Says in the log that a certificate is not valid, or soon no more: when it was read, and each day."""

    def __init__(self, path: Path) -> None:
        self._path, self._pem = path, b""
        self._timer: asyncio.TimerHandle | None = None

    def read(self, pem: bytes) -> None:
        """The file has ``pem`` now."""
        self._pem = pem
        self._say()

    def start(self) -> None:
        """Look again each day from now on."""
        self._timer = asyncio.get_running_loop().call_later(DAY_SECONDS, self._again)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _again(self) -> None:
        self._say()
        self.start()

    def _say(self) -> None:
        if warning := why_not_valid(self._pem, datetime.now(UTC)):
            log.warning("--tls-cert %s %s", self._path, warning)


def why_not_valid(pem: bytes, now: datetime) -> str:
    """What is to be said of the certificates in ``pem``: "" if all are valid now, and for SOON.

    The first one is the server's own. Clients may do without another one, if they know a newer one.
    """
    try:
        times = [_times(ssl.PEM_cert_to_DER_cert(each.decode())) for each in _CERTIFICATE.findall(pem)]
    except (ValueError, IndexError, KeyError):  # OpenSSL takes it, and so do clients
        return ""
    for number, (begin, end) in enumerate(times):
        if why := _why(begin, end, now, "clients may refuse it" if number else "clients refuse it"):
            return f"has another certificate, which {why}" if number else why
    return ""


def _why(begin: datetime, end: datetime, now: datetime, then: str) -> str:
    if now < begin:
        return f"is not valid before {begin:%Y-%m-%d %H:%M} UTC: {then}; is the clock of this machine right?"
    renew = "renew it; the server reads the files again when they change"
    if now > end:
        return f"has expired on {end:%Y-%m-%d %H:%M} UTC: {then}; {renew}"
    return f"expires on {end:%Y-%m-%d %H:%M} UTC; {renew}" if now > end - SOON else ""


def _times(certificate: bytes) -> tuple[datetime, datetime]:
    """From when and until when a certificate in DER is valid. Raises ValueError, IndexError or KeyError."""
    at = _value(certificate, _value(certificate, 0)[0])[0]
    if certificate[at] == _VERSION:
        at = _value(certificate, at)[1]
    for _ in ("serial number", "algorithm", "issuer"):
        at = _value(certificate, at)[1]
    first = _value(certificate, at)[0]
    return _date(certificate, first), _date(certificate, _value(certificate, first)[1])


def _date(data: bytes, at: int) -> datetime:
    first, end = _value(data, at)
    return datetime.strptime(data[first:end].decode("ascii"), _FORMATS[data[at]]).replace(tzinfo=UTC)


def _value(data: bytes, at: int) -> tuple[int, int]:
    """The beginning and the end of the value of the element of DER at this place."""
    size, first = data[at + 1], at + 2
    if size & 0x80:
        first += size & 0x7F
        size = int.from_bytes(data[at + 2 : first], "big")
    return first, first + size
