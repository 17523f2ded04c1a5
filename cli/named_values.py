"""Options that are given as NAME=VALUE: inputs, and gRPC metadata."""

from __future__ import annotations

import base64
import re
from collections import Counter

import click


def split(option: str, texts: tuple[str, ...], example: str) -> list[tuple[str, str]]:
    """The names and values in ``texts``. Raises click.UsageError."""
    values = []
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name or not value:
            raise click.UsageError(f"{option} {text!r} is not NAME=VALUE, such as {example}")
        values.append((name, value))
    if twice := [name for name, count in Counter(name for name, _ in values).items() if count > 1]:
        raise click.UsageError(f"{option} {twice[0]} is given more than once")
    return values


def read_metadata(texts: tuple[str, ...]) -> dict[str, str | bytes]:
    """The gRPC metadata in ``texts``. Raises click.UsageError, which shows no value: it may be a secret."""
    example = "traceparent=00-…"
    for text in texts:
        name = re.split("[=: ]", text, maxsplit=1)[0]
        if not name or text[len(name) :][:1] in (":", " "):  # as a header of HTTP is written
            raise click.UsageError(f"--metadata with the name {name!r} is not NAME=VALUE, such as {example}")
    return {name: _bytes_or_text(name, value) for name, value in split("--metadata", texts, example)}


def _bytes_or_text(name: str, value: str) -> str | bytes:
    if not name.endswith("-bin"):
        return value
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except ValueError:
        raise click.UsageError(
            f"--metadata {name}: a name that ends in -bin has bytes, written in base64, such as {name}=AP8="
        ) from None
