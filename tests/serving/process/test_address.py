"""The address to listen on, as a person writes it."""

from __future__ import annotations

import pytest

from normfold.serving.process.address import check, check_port


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8001",
        "localhost:0",
        "my-host.example:1",
        "[::1]:8001",
        "::1:8001",
        "[fe80::1%eth0]:80",
        "[::]:0",
        "[127.0.0.1]:8001",  # as of a script that writes brackets around every host
        "[localhost]:8001",
    ],
)
def test_a_host_and_a_port_are_taken(address: str) -> None:
    check(address)


@pytest.mark.parametrize(
    ("address", "end"),
    [
        ("::1", r"; did you mean \[::1\]:8001\?"),
        ("[::1]", r"; did you mean \[::1\]:8001\?"),
        ("[::1", r"; did you mean \[::1\]:8001\?"),
        ("1.2.3.4:5:6", ": '1.2.3.4:5' is no host"),
        ("a]:80", r": 'a\]' is no host"),
        ("8001", r"; did you mean 127\.0\.0\.1:8001\?"),
        ("127.0.0.1:99999", ": '99999' is not a port from 0 to 65535"),
    ],
)
def test_an_address_that_is_none_is_refused_with_what_was_probably_meant(address: str, end: str) -> None:
    with pytest.raises(ValueError, match=f"is not host:port, such as 127.0.0.1:8001, or unix:/path{end}$"):
        check(address)


def test_the_port_that_is_proposed_is_the_usual_one_of_the_option() -> None:
    with pytest.raises(ValueError, match=r"^metrics address .*; did you mean \[::1\]:8002\?$"):
        check_port("::1")
