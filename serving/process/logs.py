"""The server's log, and its settings, which clients read and change through LogSettings while the server runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TextIO

from normfold.protos import grpc_service as pb
from normfold.serving.errors import InvalidRequest, Unimplemented
from normfold.serving.process.log_lines import ACCESS, TEXT, formatter
from normfold.serving.process.writer_thread import WriterThread
from normfold.serving.wording import LIMIT, near, printable, quoted

#: The parent of all loggers of the server.
LOGGER = logging.getLogger("normfold")

_KINDS = {
    "log_file": "string_param",
    "log_info": "bool_param",
    "log_warning": "bool_param",
    "log_error": "bool_param",
    "log_verbose_level": "uint32_param",
    "log_format": "string_param",
}
FORMATS = ("default", "ISO8601")

Value = bool | int | str


class LogSettings:
    """Switches for information, warnings and errors, and the level of verbose (debug) lines."""

    def __init__(self, level: str = "info") -> None:
        """``level`` is one of LEVELS."""
        self._values: dict[str, Value] = {
            "log_file": "",
            "log_info": level in ("debug", "info"),
            "log_warning": level != "error",
            "log_error": True,
            "log_verbose_level": int(level == "debug"),
            "log_format": "default",
        }
        self._apply()

    def install(
        self,
        stream: TextIO | WriterThread,
        form: str = TEXT,
        worker: int | None = None,
        trace_id: Callable[[], str] = str,
    ) -> logging.Handler:
        """Write the server's log to ``stream`` by these settings; the handler, so that it can be removed again.

        ``form`` is one of ``log_lines.FORMS``; every line has the number of the ``worker`` that writes it, and in JSON
        what ``trace_id`` gives for the call that is being answered.
        """
        handler = logging.StreamHandler(stream)
        handler.addFilter(self._passes)
        handler.setFormatter(formatter(form, stream, self._values, worker, trace_id))
        LOGGER.addHandler(handler)
        LOGGER.propagate = False
        return handler

    def read(self) -> dict[str, Value]:
        """The settings by name."""
        return dict(self._values)

    def update(self, settings: Mapping[str, pb.LogSettingsRequest.SettingValue]) -> None:
        """Change all of ``settings``, or none. Raises InvalidRequest, and Unimplemented for the log file."""
        changes: dict[str, Value] = {}
        for key, value in settings.items():
            if key not in _KINDS:
                raise InvalidRequest(f"log setting {quoted(key)} is not known{near(key, _KINDS)}")
            kind = value.WhichOneof("parameter_choice")
            if kind is None:
                continue
            if kind != _KINDS[key]:
                raise InvalidRequest(f"log setting {quoted(key)} must be given as {_KINDS[key]}, got {kind}")
            changes[key] = getattr(value, kind)
        if changes.get("log_file", ""):
            raise Unimplemented("log file location can not be updated through network protocol")
        if changes.get("log_format", "default") not in FORMATS:
            got = printable(str(changes["log_format"])[:LIMIT])
            raise InvalidRequest(f"invalid argument for log_format, got: {got}; it must be one of {', '.join(FORMATS)}")
        self._values.update(changes)
        self._apply()

    def _apply(self) -> None:
        """Set the level of the logger, so that it drops records that no handler would show."""
        shown = (
            (logging.DEBUG, self._values["log_verbose_level"]),
            (logging.INFO, self._values["log_info"]),
            (logging.WARNING, self._values["log_warning"]),
            (logging.ERROR, self._values["log_error"]),
        )
        LOGGER.setLevel(min((level for level, on in shown if on), default=logging.CRITICAL))

    def _passes(self, record: logging.LogRecord) -> bool:
        if record.name == ACCESS.name:
            return True
        if record.levelno >= logging.ERROR:
            return bool(self._values["log_error"])
        if record.levelno >= logging.WARNING:
            return bool(self._values["log_warning"])
        if record.levelno >= logging.INFO:
            return bool(self._values["log_info"])
        return bool(self._values["log_verbose_level"])
