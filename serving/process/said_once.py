"""The log of a task that tries again and again: it has each failure once, not at every try."""

from __future__ import annotations

import logging


class SaidOnce:
    """Logs the failures of one task."""

    def __init__(self, log: logging.Logger) -> None:
        self._log, self._last = log, ""

    def say(self, message: str, error: Exception | None = None) -> None:
        """Log ``message`` unless it was the last one; with the traceback of ``error``, if one is given."""
        if message != self._last:
            self._log.error("%s", message, exc_info=error)
        self._last = message

    def over(self) -> bool:
        """Note that a try has succeeded; whether the one before had failed."""
        failed, self._last = bool(self._last), ""
        return failed
