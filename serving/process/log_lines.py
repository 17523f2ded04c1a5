"""The levels and the lines of the server's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from normfold.serving.wording import printable

#: From the most lines to the fewest.
LEVELS = ("debug", "info", "warning", "error")


class Lines(logging.Formatter):
    """One line for each record: Triton's short form, or one with an ISO 8601 time."""

    def __init__(self, settings: Mapping[str, bool | int | str], prefix: str = "") -> None:
        """``settings`` are read again for each line; ``prefix`` is put before every message."""
        super().__init__()
        self._settings, self._prefix = settings, prefix

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback below it if there is one.

        Control characters are escaped: messages have names out of model files and requests.
        """
        then = time.gmtime(record.created)
        if self._settings["log_format"] == "ISO8601":
            head = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', then)} {record.levelname}"
        else:
            micros = int(record.created % 1 * 1e6)
            head = f"{record.levelname[0]}{time.strftime('%m%d %H:%M:%S', then)}.{micros:06d}"
        line = f"{head} {self._prefix}{printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
