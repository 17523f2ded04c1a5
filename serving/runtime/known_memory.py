"""The measured memory of runs, remembered from one load of a model to the next.

    $NORMFOLD_CACHE_DIR, else $XDG_CACHE_HOME/normfold, else ~/.cache/normfold
      memory/<digest of model file, onnxruntime, processor, threads and measured inputs>.json

The folder may be deleted at any time. Without it, or if it cannot be read or written, models are measured again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import asdict
from pathlib import Path

import onnxruntime as ort

from normfold.plain_file import read_plain_file
from normfold.processor import processor_name
from normfold.serving.runtime.run_memory import RunMemory
from normfold.whole_file import write_whole

log = logging.getLogger(__name__)

#: A remembered file is smaller than this; a larger one was not written by this module.
MOST_BYTES = 4096


def find(folder: Path | None, data: bytes, measured: object) -> RunMemory | None:
    """The memory that is remembered for the model file ``data`` and the runs ``measured``; None: nothing is."""
    if folder is None:
        return None
    try:
        found = RunMemory(**json.loads(read_plain_file(_file(folder, data, measured), MOST_BYTES)))
        sound = all(math.isfinite(value) and value >= 1 for value in asdict(found).values())
    except (OSError, ValueError, OverflowError, TypeError, RecursionError):
        return None
    return found if sound else None


def keep(folder: Path | None, data: bytes, measured: object, memory: RunMemory) -> None:
    """Remember ``memory``; if the folder cannot be written, the model is measured again."""
    if folder is None:
        return
    file = _file(folder, data, measured)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(memory)).encode())
    except OSError as error:
        log.debug("%s cannot be kept: %s", file, error.strerror or error)


def _file(folder: Path, data: bytes, measured: object) -> Path:
    about = f"{ort.__version__} {processor_name()} {measured} {hashlib.sha256(data).hexdigest()}"
    return folder / f"{hashlib.sha256(about.encode()).hexdigest()}.json"
