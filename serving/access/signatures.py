"""Signatures of model versions: Ed25519 (RFC 8032) over everything that decides what a version answers.

    statement = JSON of the model's name, the number of the version, the SHA-256 of manifest.json,
                and that of each file beside the versions (config.pbtxt, labels)

The manifest has the SHA-256 of the version's own files. Name and number are in the statement, so that nobody can put a
signed version in the place of another one. The package ``cryptography`` is needed only here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.plain_file import SMALL_BYTES, read_plain_file
from normfold.serving.errors import StartError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: The file of the signature, in the folder of the version.
SIGNATURE_FILE = "manifest.sig"
_PREFIX = b"ed25519:"
_HOW = "openssl genpkey -algorithm ed25519 -out signing.key && openssl pkey -in signing.key -pubout -out signing.pub"


def statement(model: str, version: int, manifest: bytes, beside: Mapping[str, bytes]) -> bytes:
    """The bytes that are signed; ``beside`` are the files beside the versions by name."""
    files = {name: hashlib.sha256(data).hexdigest() for name, data in beside.items()}
    said = {
        "normfold": "signature of a model version, 1",
        "model": model,
        "version": version,
        "manifest": hashlib.sha256(manifest).hexdigest(),
        "files": files,
    }
    return json.dumps(said, sort_keys=True).encode()


def sign(key: Ed25519PrivateKey, said: bytes) -> bytes:
    """The content of SIGNATURE_FILE."""
    return _PREFIX + base64.b64encode(key.sign(said)) + b"\n"


def verify(key: Ed25519PublicKey, written: bytes, said: bytes) -> bool:
    """Whether ``written``, the content of SIGNATURE_FILE, is the signature of ``key`` under ``said``."""
    from cryptography.exceptions import InvalidSignature

    if not written.startswith(_PREFIX):
        return False
    try:
        key.verify(base64.b64decode(written.removeprefix(_PREFIX).strip(), validate=True), said)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs. Raises StartError."""
    found: Ed25519PrivateKey = _read(path, private=True)
    return found


def read_public_key(path: Path) -> Ed25519PublicKey:
    """The key that checks. Raises StartError."""
    found: Ed25519PublicKey = _read(path, private=False)
    return found


def _read(path: Path, private: bool) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ImportError:
        raise StartError("signatures need the package cryptography: pip install 'normfold[signing]'") from None
    kind = "private" if private else "public"
    try:
        data = read_plain_file(path, SMALL_BYTES)
        key = load_pem_private_key(data, None) if private else load_pem_public_key(data)
    except OSError as error:
        raise StartError(f"key {path} cannot be read: {error.strerror}") from None
    except TypeError:
        raise StartError(f"key {path} has a passphrase; give it without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise StartError(f"key {path} is not a {kind} key in PEM; make a pair with: {_HOW}") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey):
        raise StartError(f"key {path} is not an Ed25519 key; make a pair with: {_HOW}")
    return key
