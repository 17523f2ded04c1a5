"""The numbers that options of ``normfold serve`` may be; a sentence about another one is in the unit of its option."""

from __future__ import annotations

import math
from typing import NamedTuple

from normfold.serving.errors import StartError

#: The smallest memory limit of a process, in bytes: less than it has before it loads anything is a mistake.
LEAST_LIMIT_BYTES = 64 << 20

#: The longest time in the life of a connection; grpcio counts it in milliseconds, in 31 bits.
LONGEST_SECONDS = 2_000_000.0


class SettingBound(NamedTuple):
    """The values that an option may have, in the unit in which a person types it."""

    option: str
    field: str
    least: float
    most: float = math.inf
    #: Whether the least itself is too little.
    above: bool = False
    #: Whether 0 is allowed though the least is more: it stands for the default.
    or_zero: bool = False
    #: The bytes of one unit; 0 where nothing is counted in bytes.
    unit_bytes: int = 0
    #: What is written behind the number: on the command line, and in the sentence.
    typed: str = ""
    said: str = ""

    def check(self, value: float) -> None:
        """Raise StartError, with the option and the unit that a person knows, for a value that is not allowed."""
        number = value / self.unit_bytes if self.unit_bytes else value
        enough = number > self.least if self.above else number >= self.least
        if (enough and number <= self.most) or (self.or_zero and not number):
            return
        least = f"more than {self.least:g}" if self.above else f"at least {self.least:g}"
        between = f"{least}{self.said}" if math.isinf(self.most) else f"{least}, at most {int(self.most)}{self.said}"
        zero = ", or 0" if self.or_zero else ""
        raise StartError(f"{self.option} {number:g}{self.typed}: expected {between}{zero}")


def _seconds(option: str, field: str, least: float, most: float = math.inf, above: bool = False) -> SettingBound:
    return SettingBound(option, field, least, most, above, said=" seconds")


def _mebibytes(option: str, field: str, least: float, most: float = math.inf, or_zero: bool = False) -> SettingBound:
    return SettingBound(option, field, least, most, or_zero=or_zero, unit_bytes=1 << 20, said=" MiB")


_LEAST_LIMIT = LEAST_LIMIT_BYTES >> 20

#: The bound of every setting that is a number.
BOUNDS = (
    SettingBound("--threads", "threads", 0, 1024),
    SettingBound("--max-connections", "max_connections", 1),
    SettingBound("--max-queue-requests", "max_queue_requests", 1),
    _mebibytes("--max-message-mib", "max_message_bytes", 1, 2048 - 2.0**-20),
    _mebibytes("--max-connection-mib", "max_connection_bytes", 1),
    _mebibytes("--max-held-mib", "max_held_bytes", 1),
    _mebibytes("--max-queue-mib", "max_queue_bytes", 1),
    _mebibytes("--load-mib", "load_bytes", 0),
    _mebibytes("--memory-limit", "memory_limit_bytes", _LEAST_LIMIT, or_zero=True)._replace(typed="MiB"),
    _mebibytes("--memory-budget", "memory_budget_bytes", _LEAST_LIMIT, or_zero=True)._replace(typed="MiB"),
    _seconds("--poll-seconds", "poll_seconds", 0.1, LONGEST_SECONDS),
    _seconds("--load-seconds", "load_seconds", 0),
    _seconds("--worker-seconds", "worker_seconds", 2),
    _seconds("--stall-seconds", "stall_seconds", 0, above=True),
    _seconds("--max-queue-seconds", "max_queue_seconds", 0, above=True),
    _seconds("--grace-seconds", "grace_seconds", 0),
    _seconds("--drain-delay", "drain_delay_seconds", 0),
    _seconds("--max-connection-age", "max_connection_age_seconds", 0, LONGEST_SECONDS),
    _seconds("--max-connection-age-grace", "max_connection_age_grace_seconds", 0, LONGEST_SECONDS, above=True),
    _seconds("--max-connection-idle", "max_connection_idle_seconds", 0, LONGEST_SECONDS),
    _seconds("--keepalive-seconds", "keepalive_seconds", 0, LONGEST_SECONDS),
    _seconds("--keepalive-timeout", "keepalive_timeout_seconds", 0, LONGEST_SECONDS, above=True),
)
