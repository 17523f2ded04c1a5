"""The version of a model as requests write it."""

from __future__ import annotations

import re

from normfold.serving.errors import InvalidRequest
from normfold.serving.wording import LIMIT, quoted


def parse_version(text: str) -> int | None:
    """The version that a request names, None for "". As in Triton, text behind the number is ignored.

    Raises InvalidRequest.

    >>> parse_version(""), parse_version(" 12"), parse_version("1.5")
    (None, 12, 1)
    """
    if not text:
        return None
    match = re.match(r"\s*([+-]?[0-9]{1,18})(?![0-9])", text[:LIMIT])
    if match is None:
        raise InvalidRequest(
            f"failed to get model version from specified version string {quoted(text)} (details: stol), "
            "version should be an integral value > 0"
        )
    if int(match[1]) < 0:
        raise InvalidRequest(
            f"invalid model version specified {quoted(text)} , version should be an integral value > 0"
        )
    return int(match[1])
