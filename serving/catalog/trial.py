"""The trial of a load: a model is first loaded and warmed up in a process that can be ended, then in the server.

A file may hold a loop without end, functions that double again and again, or a constant of gigabytes in a few bytes,
and onnxruntime cannot be interrupted. So another process (``trial_process``) loads each version first, within a limit
of time and of memory. What passed is remembered by the content of its files, in ``loads/`` of the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from normfold.protos import model_config as mc
from normfold.serving import errors
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.repository import SentFolder
from normfold.serving.catalog.trial_memory import TrialMemory
from normfold.serving.catalog.trial_process import TrialFile, TrialJob, write_job
from normfold.serving.errors import Hindered, LoadError, Unavailable
from normfold.serving.process import children
from normfold.serving.rpc.traffic import EXITING
from normfold.serving.runtime.devices import installed_runtimes
from normfold.serving.runtime.reasons import TOO_LITTLE
from normfold.whole_file import write_whole

log = logging.getLogger(__name__)

MODULE = "normfold.serving.catalog.trial_process"

#: Without a limit of the user, a load may have this much memory, and this many times the size of its files.
BASE_BYTES, TIMES_FILES = 2 << 30, 8

#: A trial that takes longer than this no longer keeps the next ones waiting.
PATIENCE_SECONDS = 1.0

#: Longest wait for the process to start, and the time between two looks at its memory.
START_SECONDS, LOOK_SECONDS = 120.0, 0.02


@dataclass(frozen=True)
class LoadLimits:
    """The limits of a load."""

    seconds: float
    #: Memory beyond that of an idle process, in bytes; 0: BASE_BYTES and TIMES_FILES times the size of its files.
    bytes: int = 0

    def memory_bytes(self, file_bytes: int) -> int:
        """The limit for a load whose files have ``file_bytes`` bytes together."""
        return self.bytes or BASE_BYTES + TIMES_FILES * file_bytes


class Trials:
    """Tries loads in processes of their own; ``check`` may be called from several threads at once."""

    def __init__(self, limits: LoadLimits, folder: Path | None) -> None:
        """``folder`` remembers what passed; None: nothing does."""
        self._limits, self._folder = limits, folder
        self._trying = threading.Lock()
        self._memory = TrialMemory()
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._closed = False
        #: Loads that want a process, and whether one that nobody wants is kept.
        self._wanted, self._keep = 0, True

    def check(self, folder: SentFolder, written: mc.ModelConfig, version: int, options: LoadOptions) -> None:
        """Load and warm up ``version`` in another process, unless these files passed before.

        Raises LoadError where that fails, takes too long or needs too much memory, Unavailable after ``close``.
        """
        files = tuple(TrialFile(path, data) for path, data in sorted(folder.files.items()))
        job = TrialJob(
            folder.name,
            version,
            written.SerializeToString(deterministic=True),
            files,
            options.device,
            options.cpus,
            options.threads,
            options.allow_unproved_sizes,
            options.budget.limit_bytes if options.budget else 0,
        )
        mark = self._mark(job, folder)
        with suppress(OSError):  # a cache that cannot be read, such as another user's, remembers nothing
            if mark is not None and mark.exists():
                return
        with self._lock:
            self._wanted += 1
        size = sum(len(file.data) for file in files)
        most = self._limits.memory_bytes(size)
        total = max(most, options.budget.room_bytes if options.budget else most)
        with _Turn(self._trying) as turn, self._memory.place(turn, size, total):
            child = self._take()
            try:
                watch = partial(self._memory.too_much, turn)
                kind, message = child.carry_out(job, self._limits.seconds, most, turn, watch)
            finally:
                self._put_back(child, keep=not options.device.gpu_demanded)
        error = getattr(errors, kind, None)
        if isinstance(error, type) and issubclass(error, LoadError):
            raise error(message)
        if not kind and mark is not None:
            with suppress(OSError):
                mark.parent.mkdir(parents=True, exist_ok=True)
                write_whole(mark, b"")

    def rest(self) -> None:
        """End the process that waits for work; from now on none is kept for loads that may come."""
        with self._lock:
            self._keep = False
        self.pause()

    def pause(self) -> None:
        """End the process that waits for work; the next load starts another, which is kept for further ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def close(self) -> None:
        """End all processes; the loads under way fail."""
        with self._lock:
            self._closed = True
            children_now = [*self._idle, *self._busy]
            self._idle = []
        for child in children_now:
            child.end()

    def _take(self) -> _Child:
        with self._lock:
            if self._closed:
                self._wanted -= 1
                raise Unavailable(EXITING)
            child = self._idle.pop() if self._idle else None
        if child is None:
            try:
                child = _Child()
            except OSError as error:
                with self._lock:
                    self._wanted -= 1
                raise Hindered(f"its trial cannot start: {error.strerror or error}") from None
        with self._lock:
            self._busy.add(child)
            closed = self._closed
        if closed:
            child.end()
        return child

    def _put_back(self, child: _Child, keep: bool) -> None:
        """Keep ``child`` for the next trial; on a GPU it would hold memory that the server needs."""
        with self._lock:
            self._busy.discard(child)
            self._wanted -= 1
            if keep and (self._keep or self._wanted) and not child.ended and not self._closed:
                self._idle.append(child)
                return
        child.end()

    def _mark(self, job: TrialJob, folder: SentFolder) -> Path | None:
        """The file that says that ``job`` passed, whose files are those of ``folder``."""
        if self._folder is None:
            return None
        about = [installed_runtimes(), job.version, str(job.device), job.cpus, job.threads, job.allow_unproved_sizes]
        about += [job.limit_bytes, self._limits.seconds, self._limits.bytes, hashlib.sha256(job.config).hexdigest()]
        about += [(file.path, folder.sha256(file.path)) for file in job.files]
        return self._folder / hashlib.sha256(json.dumps(about).encode()).hexdigest()


class _Turn:
    """The turn of one trial. Trials run one after the other, except that ``give_up`` of a long one starts the next."""

    def __init__(self, trying: threading.Lock) -> None:
        self._trying, self._mine = trying, False

    def __enter__(self) -> _Turn:
        self._trying.acquire()
        self._mine = True
        return self

    def give_up(self) -> None:
        if self._mine:
            self._mine = False
            self._trying.release()

    def __exit__(self, *error: object) -> None:
        self.give_up()


class _Child:
    """One process of ``trial_process``."""

    def __init__(self) -> None:
        self.ended = False
        self._process = subprocess.Popen(
            children.python(MODULE, str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=children.environment(),
            start_new_session=True,  # Ctrl-C is for the server, which ends this process
        )
        self._started = False

    def carry_out(
        self, job: TrialJob, seconds: float, most: int, turn: _Turn, too_much: Callable[[int], bool]
    ) -> tuple[str, str]:
        """The class and the message of the error of a load, "" for none.

        It may take ``seconds``, and ``most`` bytes unless all loads together have ``too_much``. Raises LoadError,
        Unavailable.
        """
        if not self._started:
            self._line(START_SECONDS, None, Hindered(f"its trial did not start within {START_SECONDS:g} s"))
            self._started = True
        pid = self._process.pid
        before, highest = children.resident_bytes(pid), children.most_resident_bytes(pid)
        large = LoadError(f"loading it needs more memory than {most >> 20} MiB; --load-mib allows more")
        with suppress(OSError):  # it has ended, which the next line finds
            write_job(cast("BinaryIO", self._process.stdin), job)
        late = Hindered(f"loading it took longer than {seconds:g} s; --load-seconds allows more")

        def look() -> None:
            resident = children.resident_bytes(pid)
            if resident > before + most:
                raise large
            if too_much(resident):
                raise Hindered("the models that load now need more memory together than there is; load it later")

        line = self._line(seconds, turn, late, look)
        kind, message = json.loads(line)
        peak = children.most_resident_bytes(pid)
        if highest < peak and peak > before + most:
            raise large
        if TOO_LITTLE in message or kind == "MemoryError":  # the system may lack memory, whatever the limit
            raise Hindered(str(large))
        return str(kind), str(message)

    def _line(
        self, seconds: float, turn: _Turn | None, late: LoadError, look: Callable[[], None] | None = None
    ) -> bytes:
        """The next line of the process.

        Raises ``late`` after ``seconds``, and what ``look`` raises; the process is ended then.
        """
        begun = time.monotonic()
        assert self._process.stdout is not None
        while not select.select([self._process.stdout], [], [], LOOK_SECONDS)[0]:
            now = time.monotonic()
            if turn is not None and now > begun + PATIENCE_SECONDS:
                turn.give_up()
            try:
                if now > begun + seconds:
                    raise late
                if look is not None:
                    look()
            except LoadError:
                self.end()
                raise
        line = self._process.stdout.readline()
        if line:
            return line
        if self.ended:
            raise Unavailable(EXITING)
        code = self._process.wait()
        self.ended = True
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        kind = Hindered if code == -signal.SIGKILL else LoadError  # as the system does where memory runs out
        raise kind(f"onnxruntime crashed while it loaded the model ({how})")

    def end(self) -> None:
        """End the process."""
        self.ended = True
        self._process.kill()
        self._process.wait()
