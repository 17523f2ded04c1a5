"""A certificate that clients will refuse is a warning in the log: at the start, when it is read again, and each day."""

from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.waiting import wait_until

from normfold.serving.access import validity
from normfold.serving.access.validity import Reminder, why_not_valid
from normfold.serving.process import file_watch

NOW = datetime.now(UTC).replace(microsecond=0)
LONG = timedelta(days=400)


@pytest.mark.parametrize(
    ("begin", "end", "said"),
    [
        (-LONG, LONG, ""),
        (-LONG, timedelta(days=15), ""),
        (-LONG, timedelta(days=13), "expires on"),
        (-LONG, -timedelta(hours=1), "has expired on"),
        (timedelta(hours=1), LONG, "is not valid before"),
        (-LONG, timedelta(days=365 * 60), ""),  # its date has four digits of the year
    ],
)
def test_what_is_said_names_the_time_and_what_to_do(authority, begin, end, said):
    made = authority.issue("localhost", not_before=NOW + begin, not_after=NOW + end)
    found = why_not_valid(made.cert.read_bytes(), NOW)
    assert found.startswith(said)
    assert bool(found) is bool(said)
    when = NOW + (begin if "before" in said else end)
    assert f"{when:%Y-%m-%d %H:%M} UTC" in found or not said


@pytest.mark.parametrize("words", [1, 3, 9])
def test_the_dates_are_found_behind_an_issuer_of_any_length(words):
    """Its length takes one byte, two, or three."""
    units = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "w" * 40)] * words
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name(units)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - LONG, NOW - LONG / 2)
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    assert f"has expired on {NOW - LONG / 2:%Y-%m-%d %H:%M} UTC" in why_not_valid(pem, NOW)


def test_every_certificate_of_the_file_counts(authority):
    good = authority.issue("localhost", not_before=NOW - LONG, not_after=NOW + LONG).cert.read_bytes()
    bad = authority.issue("localhost", not_before=NOW - LONG, not_after=NOW - LONG / 2).cert.read_bytes()
    assert why_not_valid(good, NOW) == ""
    assert ": clients refuse it" in why_not_valid(bad + good, NOW)
    found = why_not_valid(good + bad, NOW)  # TLS goes on if the client has no need of it
    assert found.startswith("has another certificate, which has expired on")
    assert ": clients may refuse it" in found
    other = (good + bad).replace(b"BEGIN CERT", b"BEGIN X509 CERT").replace(b"END CERT", b"END X509 CERT")
    assert why_not_valid(other, NOW) == ""
    assert why_not_valid(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", NOW) == ""


def test_a_server_says_it_at_its_start_and_when_the_file_changes(
    authority, tmp_path, repository, serve, monkeypatch, caplog
):
    """It started, and read an expired certificate again, without a word."""
    monkeypatch.setattr(file_watch, "LOOK_SECONDS", 0.01)
    old = authority.issue("localhost", not_before=NOW - LONG, not_after=NOW - timedelta(days=1))
    new = authority.issue("localhost", not_before=NOW - LONG, not_after=NOW + LONG)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def put(made):
        shutil.copy(made.key, key)
        shutil.copy(made.cert, cert)

    def said():
        return caplog.text.count(f"--tls-cert {cert} has expired on {NOW - timedelta(days=1):%Y-%m-%d %H:%M} UTC")

    put(new)
    with serve(repository, tls_cert=cert, tls_key=key, strict_readiness=False):
        assert said() == 0
        put(old)
        wait_until(lambda: said() == 1)
    with serve(repository, tls_cert=cert, tls_key=key, strict_readiness=False):
        assert said() == 2


def test_it_is_said_each_day(authority, monkeypatch, caplog):
    monkeypatch.setattr(validity, "DAY_SECONDS", 0.001)
    made = authority.issue("localhost", not_before=NOW - LONG, not_after=NOW + timedelta(days=1))

    async def scenario():
        one = Reminder(made.cert)
        one.read(made.cert.read_bytes())
        one.start()
        while len(caplog.records) < 3:
            await asyncio.sleep(0.001)
        one.stop()
        before = len(caplog.records)
        await asyncio.sleep(0.02)
        assert len(caplog.records) == before

    asyncio.run(asyncio.wait_for(scenario(), 20))
