"""Measurements that are made once: a later export of the same network on the same machine reads them from here.

If every export measured anew, two variants that are about equally fast would be published in turn. So each measurement,
and the variant that was fastest in it, is kept in the user's cache folder: one small file, named by a digest of
everything that the measurement is valid for, that is the bytes of the variants, the shapes of the inputs and the
machine. The first measurement that is written is kept, even if another export measured at the same time.

    $NORMFOLD_CACHE_DIR, else $XDG_CACHE_HOME/normfold, else ~/.cache/normfold
      measurements/<digest>.json

The folder may be deleted at any time. Where it cannot be read or written, or a file in it is damaged, the measurement
is made again without a message (only the log at debug level says so).
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
from normfold.plain_file import read_plain_file
from normfold.whole_file import write_first, write_whole

__all__ = ["Measurement", "Subject", "measured_once"]

logger = logging.getLogger(__name__)

#: Raised by one when the format of the files or the way of measuring changes.
_SCHEMA = 1
#: A larger file was not written by this module.
_MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Subject:
    """The subject of a measurement, which is valid as long as every field is the same."""

    #: Name of the variant -> sha256 of its graph.
    variants: Mapping[str, str]
    #: "x[1,77,32]"
    shapes: str
    machine: Machine

    @classmethod
    def of(cls, graphs: Mapping[str, bytes], shapes: str, machine: Machine) -> Subject:
        """Describe the graphs of the variants in ``graphs``, run on inputs of ``shapes``."""
        return cls({name: hashlib.sha256(content).hexdigest() for name, content in graphs.items()}, shapes, machine)

    def as_json(self) -> dict[str, Any]:
        """Return everything that the measurement is valid for, as plain values."""
        machine = {**asdict(self.machine), "providers": list(self.machine.providers)}
        return {"schema": _SCHEMA, "forms": dict(self.variants), "shapes": self.shapes, "machine": machine}

    @property
    def digest(self) -> str:
        """The sha256 of all fields; the order of the variants does not count."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Measurement:
    """Median run times, and the variant that was fastest."""

    #: Name of the variant -> milliseconds.
    medians_ms: Mapping[str, float]
    #: Number of rounds that each median is taken over.
    rounds: int
    #: The fastest variant, with the margins of :mod:`normfold.export.forms.variants`.
    fastest: str
    #: Whether another export measured it, earlier or at the same time.
    remembered: bool = False


def measured_once(subject: Subject, measure: Callable[[], Measurement], again: bool = False) -> Measurement:
    """Return the remembered measurement of ``subject``; without one, or with ``again``, measure and remember it."""
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
        kept = _write(path, subject, taken, replace_known=again)
    except OSError as error:
        logger.debug("the measurement was not remembered in '%s': %s", path, error)
        return taken
    if kept:
        return taken
    return _read(path, subject) or taken  # another export was first


def _read(path: Path, subject: Subject) -> Measurement | None:
    """Return the measurement in ``path``; None where it is missing, damaged or of another subject."""
    try:
        held = json.loads(read_plain_file(path, _MAX_BYTES))
        if {key: held[key] for key in subject.as_json()} != subject.as_json():
            raise ValueError("it is a measurement of something else")
        medians = {str(name): float(ms) for name, ms in held["medians_ms"].items()}
        if medians.keys() != subject.variants.keys() or not all(0 < ms < math.inf for ms in medians.values()):
            raise ValueError("its figures are not those of these variants")
        if held["fastest"] not in medians or type(held["rounds"]) is not int:
            raise ValueError("its fastest variant is none of those measured")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.debug("'%s' is not read: %s", path, error)
        return None
    return Measurement({name: medians[name] for name in subject.variants}, held["rounds"], held["fastest"], True)


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
