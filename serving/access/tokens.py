"""The file of tokens: who may do what. The tokens themselves are not in it, only their digests.

    # name     scopes       models              digest, of 64 hexadecimal digits
    hospital   infer,read   surnames,gunpoint   sha256:9f86d081884c…
    operator   read,admin   *                   sha256:60303ae22b99…

A token has 256 random bits, so a plain SHA-256 hides it: there is nothing to guess that a slow hash would slow down.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from normfold.counting import counted
from normfold.plain_file import SMALL_BYTES, read_plain_file
from normfold.serving.access.scopes import Scope
from normfold.serving.errors import StartError
from normfold.serving.wording import quoted

#: The beginning of every token that we make, by which a scanner of secrets knows it.
PREFIX = "nf_"
#: In the place of models: every model.
EVERY = "*"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_FORM = "NAME SCOPES MODELS sha256:DIGEST, such as normfold token prints"


@dataclass(frozen=True)
class Holder:
    """Somebody who has a token."""

    #: The name in messages and in the log.
    name: str
    scopes: frozenset[Scope]
    #: The models that may be used; None: all.
    models: frozenset[str] | None


def digest(token: str | bytes) -> bytes:
    """The SHA-256 of a token."""
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).digest()


def new_token() -> str:
    """A new token of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def line(name: str, scopes: Collection[Scope], models: Sequence[str], token: str) -> str:
    """The line of the file for ``token``; no ``models``: all. Raises ValueError for a name that cannot be written."""
    _check_names(name, models)
    text = f"{name} {','.join(scope for scope in Scope if scope in scopes)} {','.join(models) or EVERY}"
    return f"{text} sha256:{digest(token).hex()}"


def read_tokens(path: Path) -> dict[bytes, Holder]:
    """The holders in the file by the digests of their tokens; there may be none.

    Raises StartError, with the line that is wrong.
    """
    try:
        return holders_in(read_plain_file(path, SMALL_BYTES), path)
    except OSError as error:
        raise StartError(f"--tokens {path} cannot be read: {error.strerror}") from None


def holders_in(data: bytes, path: Path) -> dict[bytes, Holder]:
    """The holders in ``data``, the content of the file ``path``. Raises StartError."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise StartError(f"--tokens {path} cannot be read: it is not UTF-8 text") from None
    if text.startswith("\ufeff"):
        raise StartError(f"--tokens {path} begins with a byte order mark (BOM): save it as UTF-8 without one")
    found: dict[bytes, Holder] = {}
    for number, written in enumerate(text.splitlines(), 1):
        written = written.partition("#")[0].strip()
        if not written:
            continue
        try:
            key, holder = _read_line(written)
            if key in found or any(holder.name == other.name for other in found.values()):
                raise ValueError(f"the name {quoted(holder.name)} or its digest is there twice")
        except ValueError as error:
            raise StartError(f"--tokens {path}, line {number}: {error}") from None
        found[key] = holder
    return found


def _read_line(written: str) -> tuple[bytes, Holder]:
    """The digest and the holder of one line. Raises ValueError."""
    parts = written.split()
    if len(parts) != 4:
        raise ValueError(f"{counted(len(parts), 'word')} where 4 are expected: {_FORM}")
    name, scopes, models, hashed = parts
    named = scopes.split(",")
    if unknown := [one for one in named if one not in list(Scope)]:
        raise ValueError(f"{quoted(unknown[0])} is not a scope; there are {', '.join(Scope)}")
    allowed = None if models == EVERY else models.split(",")
    _check_names(name, allowed or ())
    if (match := _DIGEST.fullmatch(hashed)) is None:
        raise ValueError(f"the last word is not sha256: and 64 hexadecimal digits in lower case; expected {_FORM}")
    holder = Holder(name, frozenset(map(Scope, named)), None if allowed is None else frozenset(allowed))
    return bytes.fromhex(match[1]), holder


def _check_names(name: str, models: Sequence[str]) -> None:
    """Raise ValueError for a name that cannot be in the file."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{quoted(name)} is not a name of at most 64 letters, digits, . _ @ and -")
    if wrong := [one for one in models if not _MODEL.fullmatch(one)]:
        raise ValueError(f"{quoted(wrong[0])} is not a model's name; write {EVERY} for all models")
