"""Certificates, made anew for each test run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Certificate:
    """The files of a certificate, its key, and the authority that signed it."""

    cert: Path
    key: Path
    ca: Path


class Authority:
    """Signs certificates, and writes them into a folder."""

    def __init__(self, folder: Path) -> None:
        self._made, self._folder, self._count = trustme.CA(), folder, 0
        self.ca = folder / "ca.pem"
        self._made.cert_pem.write_to_path(self.ca)

    def issue(self, *names: str, **times: datetime) -> Certificate:
        """A new certificate for these names, valid ``not_before`` and ``not_after`` these times."""
        self._count += 1
        cert, key = self._folder / f"{self._count}.pem", self._folder / f"{self._count}.key"
        issued = self._made.issue_cert(*names, **times)
        cert.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return Certificate(cert, key, self.ca)
