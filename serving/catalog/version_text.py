"""The version of a model as requests and folders write it."""

from __future__ import annotations

import re

from normfold.digits import read_digits
from normfold.serving.errors import InvalidRequest
from normfold.serving.wording import LIMIT, quoted

#: The largest version: the protocol has 63 bits for it.
LARGEST = (1 << 63) - 1


def folder_version(name: str) -> int | None:
    """The version in a folder of this name, a number that does not start with 0; None for any other name.

    >>> folder_version("1764511111000000000"), folder_version("01"), folder_version("9223372036854775808")
    (1764511111000000000, None, None)
    """
    return None if name.startswith("0") else read_digits(name, LARGEST)


def parse_version(text: str) -> int | None:
    """The version that a request names, None for "". As in Triton, text behind the number is ignored.

    Raises InvalidRequest.

    >>> parse_version(""), parse_version(" 12"), parse_version("1.5")
    (None, 12, 1)
    """
    if not text:
        return None
    match = re.match(r"\s*([+-]?[0-9]{1,19})(?![0-9])", text[:LIMIT])
    if match is None or int(match[1]) > LARGEST:
        raise InvalidRequest(
            f"failed to get model version from specified version string {quoted(text)} (details: stol), "
            "version should be an integral value > 0"
        )
    if int(match[1]) < 0:
        raise InvalidRequest(
            f"invalid model version specified {quoted(text)} , version should be an integral value > 0"
        )
    return int(match[1])
