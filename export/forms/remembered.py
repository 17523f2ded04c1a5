"""Measurements that are made once: a later export of the same network on the same machine takes them from here.

Two forms of a network that are about equally fast would be published in turn if each export asked the clock anew. So
what was measured, and which form it spoke for, is kept in the user's cache folder, one small file each, under a digest
of everything it holds for: the forms' bytes, the inputs' shapes and the machine. The first measurement that is kept
stands, also for exports that were measuring at the same time.

    $NORMFOLD_CACHE_DIR, else $XDG_CACHE_HOME/normfold, else ~/.cache/normfold
      measurements/<digest>.json

The folder is a convenience: it may be deleted at any time, and where it cannot be read or written, or what stands there
is damaged, the measurement is made and nothing is said (the log at debug level apart).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from normfold.cache_folder import cache_folder
from normfold.export.forms.machine import Machine
from normfold.whole_file import write_first, write_whole

__all__ = ["Measurement", "Subject", "measured_once"]

logger = logging.getLogger(__name__)

#: Counts up when the files' form or the way of measuring changes.
_SCHEMA = 1
#: What is larger was not written by us.
_MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Subject:
    """What was measured; a measurement holds as long as all of it is the same."""

    #: Form -> sha256 of its graph.
    forms: Mapping[str, str]
    #: "x[1,77,32]"
    shapes: str
    machine: Machine

    @classmethod
    def of(cls, forms: Mapping[str, bytes], shapes: str, machine: Machine) -> Subject:
        """Describe the graphs in ``forms``, run on inputs of ``shapes``."""
        return cls({name: hashlib.sha256(content).hexdigest() for name, content in forms.items()}, shapes, machine)

    def as_json(self) -> dict[str, Any]:
        """Return everything the measurement holds for, as plain values."""
        machine = {**asdict(self.machine), "providers": list(self.machine.providers)}
        return {"schema": _SCHEMA, "forms": dict(self.forms), "shapes": self.shapes, "machine": machine}

    @property
    def digest(self) -> str:
        """The sha256 of all of it, whatever the order of the forms."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Measurement:
    """Median run times, and the form they spoke for."""

    #: Form -> milliseconds.
    medians_ms: Mapping[str, float]
    #: Rounds the medians were taken over.
    rounds: int
    #: The fastest form, as :mod:`normfold.export.forms.variants` judges.
    fastest: str
    #: Whether an earlier export, or one at the same time, took it.
    remembered: bool = False


def measured_once(subject: Subject, measure: Callable[[], Measurement], again: bool = False) -> Measurement:
    """Return what is remembered of ``subject``; else, and where ``again``, ``measure`` it and remember that."""
    folder = cache_folder("measurements")
    if folder is None:
        logger.debug("no cache folder: neither NORMFOLD_CACHE_DIR, XDG_CACHE_HOME nor a home directory is there")
        return measure()
    path = folder / f"{subject.digest}.json"
    known = None if again else _read(path, subject)
    if known is not None:
        return known
    taken = measure()
    try:
        stands = _write(path, subject, taken, replace_known=again)
    except OSError as error:
        logger.debug("the measurement was not remembered in '%s': %s", path, error)
        return taken
    if stands:
        return taken
    return _read(path, subject) or taken  # another export was first


def _read(path: Path, subject: Subject) -> Measurement | None:
    """Return what ``path`` holds; None where it is missing, damaged or about something else."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError("it is too large")
        held = json.loads(content)
        if {key: held[key] for key in subject.as_json()} != subject.as_json():
            raise ValueError("it is about something else")
        medians = {str(form): float(ms) for form, ms in held["medians_ms"].items()}
        if medians.keys() != subject.forms.keys() or not all(0 < ms < math.inf for ms in medians.values()):
            raise ValueError("its figures are not those of the forms")
        if held["fastest"] not in medians or type(held["rounds"]) is not int:
            raise ValueError("its choice is none of the forms")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.debug("'%s' is not read: %s", path, error)
        return None
    return Measurement({form: medians[form] for form in subject.forms}, held["rounds"], held["fastest"], True)


def _write(path: Path, subject: Subject, taken: Measurement, replace_known: bool) -> bool:
    """Write ``path`` whole; return False where another measurement is there already. Raises OSError."""
    held = {**subject.as_json(), **asdict(replace(taken, medians_ms=dict(taken.medians_ms)))}
    del held["remembered"]
    content = (json.dumps(held, indent=2) + "\n").encode()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not replace_known:
        if write_first(path, content):
            return True
        if _read(path, subject) is not None:
            return False
    write_whole(path, content)
    return True
