"""onnxruntime's telemetry, which normfold switches off.

From version 1.32 on, onnxruntime looks up a host of its vendor as soon as it is imported. It keeps a device id and a
database of events in the user's cache folder. Only the environment variable ORT_DISABLE_TELEMETRY prevents this, with
the value 1 or true, and only if it is set before the import. The processes that normfold starts inherit it.
"""

from __future__ import annotations

import os

__all__ = ["VARIABLE", "is_off", "switch_off"]

VARIABLE = "ORT_DISABLE_TELEMETRY"

#: Values of a user who wants the telemetry; onnxruntime then sends it.
WANTED = ("0", "false", "no", "off")


def switch_off() -> None:
    """Set the variable, unless the user asks for telemetry with 0, false, no or off."""
    if os.environ.get(VARIABLE, "").lower() not in WANTED:
        os.environ[VARIABLE] = "1"


def is_off() -> bool:
    """Whether an onnxruntime that is imported now sends nothing."""
    return os.environ.get(VARIABLE) == "1"
