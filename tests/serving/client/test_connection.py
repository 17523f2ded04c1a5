"""TLS and tokens of a client: what is refused before anything is sent."""

from __future__ import annotations

import pytest

from normfold.serving.client.client import Client
from normfold.serving.client.connection import ClientTls, token_header


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ca": "none"}, "ca \\(--tls-ca\\) .*none cannot be read: No such file or directory"),
        ({"ca": "key"}, "--tls-ca.* cannot be read: it has no line with BEGIN CERTIFICATE"),
        ({"cert": "cert"}, "belong together: give both, cert and key"),
        ({"cert": "cert", "key": "cert"}, "key .* it has no line with PRIVATE KEY;"),
        (
            {"cert": "cert", "key": "other"},
            "\\(--tls-cert, --tls-key\\) cannot be used together: the key is not that",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(certificate, known_client, tmp_path, files, words):
    there = {"cert": certificate.cert, "key": certificate.key, "other": known_client.key, "none": tmp_path / "none"}
    with pytest.raises(ValueError, match=words):
        Client("127.0.0.1:1", tls=ClientTls(**{name: there[file] for name, file in files.items()}))


@pytest.mark.parametrize(
    ("address", "name", "host"),
    [
        ("example.org:1", "", "example.org"),
        ("[::1]:1", "", "::1"),
        ("unix:/tmp/s", "", "localhost"),
        ("127.0.0.1:1", "a.example", "a.example"),
    ],
)
def test_the_certificate_must_be_for_the_host_or_the_name_that_was_given(address, name, host):
    assert ClientTls(server_name=name).host(address) == host


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "é", b"t", "t\n"])
def test_a_text_that_cannot_be_a_token_is_refused_without_being_shown(token):
    with pytest.raises(ValueError, match="the token is not one word") as caught:
        token_header(token)
    assert not token or repr(token) not in str(caught.value)
    assert token_header(None) == ()
    assert token_header("t") == (("authorization", "Bearer t"),)
