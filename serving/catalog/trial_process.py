"""A process that loads models and throws them away: what a load does to it, it does not do to the server.

It reads a ``TrialJob`` after the other from its standard input and writes a line of JSON for each: the error, if any.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from normfold.protos import model_config as mc
from normfold.serving.catalog.load import LoadOptions, load
from normfold.serving.catalog.repository import SentFolder
from normfold.serving.errors import ServingError
from normfold.serving.process import children, typed_json
from normfold.serving.process.memory_limit import MemoryBudget
from normfold.serving.runtime.devices import Device

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class TrialFile:
    """A file that a load reads."""

    path: str
    data: bytes


@dataclass(frozen=True)
class TrialJob:
    """One version of a model to load and to warm up."""

    model: str
    version: int
    #: A serialized ModelConfig, as its author wrote it.
    config: bytes
    files: tuple[TrialFile, ...]
    #: The server's, as in LoadOptions.
    device: Device
    cpus: int
    threads: int
    allow_unproved_sizes: bool
    #: The limit of the server's MemoryBudget; 0: there is none.
    limit_bytes: int


def write_job(stream: BinaryIO, job: TrialJob) -> None:
    """Write ``job`` as ``read_job`` reads it. Raises OSError."""
    parts: list[bytes] = []
    fields = typed_json.to_values(job, parts)
    head = json.dumps({"fields": fields, "sizes": [len(part) for part in parts]}).encode()
    for data in (_LENGTH.pack(len(head)), head, *parts):
        stream.write(data)
    stream.flush()


def read_job(stream: BinaryIO) -> TrialJob | None:
    """The next job; None at the end."""
    length = stream.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    head = json.loads(stream.read(*_LENGTH.unpack(length)))
    return typed_json.from_values(TrialJob, head["fields"], [stream.read(size) for size in head["sizes"]])


def carry_out(job: TrialJob) -> tuple[str, str]:
    """The name of the class of the error of a load, and its message; "" for none."""
    files = {file.path: file.data for file in job.files}
    budget = MemoryBudget(job.limit_bytes) if job.limit_bytes else None
    options = LoadOptions(
        job.device, job.cpus, job.threads, allow_unproved_sizes=job.allow_unproved_sizes, budget=budget
    )
    with ThreadPoolExecutor(1) as executor:
        try:
            written = mc.ModelConfig.FromString(job.config)
            load(SentFolder(job.model, files), written, job.version, options, executor)
        except (ServingError, MemoryError) as error:
            return type(error).__name__, str(error)
        except Exception as error:
            return type(error).__name__, ""
    return "", ""


def main() -> None:
    """Carry out the jobs that come from the process whose id is the first argument."""
    children.end_with(int(sys.argv[1]))
    with contextlib.suppress(OSError):  # if memory runs out, the system shall kill this process, not the server
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    print("ready", file=answers, flush=True)
    while (job := read_job(sys.stdin.buffer)) is not None:
        print(json.dumps(carry_out(job)), file=answers, flush=True)


if __name__ == "__main__":
    main()
