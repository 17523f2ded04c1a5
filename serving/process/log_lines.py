"""The levels and the lines of the server's log."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from normfold.serving.process.writer_thread import WriterThread
from normfold.serving.wording import printable

#: From the most lines to the fewest.
LEVELS = ("debug", "info", "warning", "error")

#: "auto": lines for people on a terminal, else JSON.
TEXT, JSON, AUTO = "text", "json", "auto"
FORMS = (TEXT, JSON, AUTO)

#: A longer message is cut, in characters: its text may be a client's, and lines are made on the event loop, too.
LONGEST = 16_000

#: The calls that have a line in the access log: none, those that do not end with OK, or every one.
OFF, ERRORS, ALL = "off", "errors", "all"
ACCESS_LOGS = (OFF, ERRORS, ALL)

#: The logger of the access log, which no level of the log switches off. A record has its parts in ``fields``.
ACCESS = logging.getLogger("normfold.access")
ACCESS.setLevel(logging.INFO)


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
        line = f"{head} {self._prefix}{printable(_message(record))}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object for each record, on one line.

    Keys: time (ISO 8601, UTC), level, logger, message; where there is one: worker (its number), trace_id (of the W3C
    traceparent of the call that is being answered), exception (the traceback). A line of the access log has the
    parts of ``LoggedCall`` and no message.
    """

    def __init__(self, worker: int | None = None, trace_id: Callable[[], str] = str) -> None:
        """``trace_id`` gives the id of the call that is being answered, "" without one."""
        super().__init__()
        self._worker, self._trace_id = worker, trace_id

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. JSON lets characters through that end a line for other readers, or steer a terminal."""
        micros = int(record.created % 1 * 1e6)
        fields: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{micros:06d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if self._worker is not None:
            fields["worker"] = self._worker
        if parts := getattr(record, "fields", None):
            del fields["message"]
            fields |= parts
        elif trace := self._trace_id():
            fields["trace_id"] = trace
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        line = json.dumps(fields, ensure_ascii=False)
        return line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def _message(record: logging.LogRecord) -> str:
    """The message of ``record``, cut."""
    text = record.getMessage()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def formatter(
    form: str,
    stream: TextIO | WriterThread,
    settings: Mapping[str, bool | int | str],
    worker: int | None = None,
    trace_id: Callable[[], str] = str,
) -> logging.Formatter:
    """The formatter for ``form``, one of FORMS, on ``stream``; see ``Lines`` and ``JsonLines``."""
    if form == JSON or (form == AUTO and not stream.isatty()):
        return JsonLines(worker, trace_id)
    return Lines(settings, "" if worker is None else f"worker {worker}: ")
