"""The messages between the supervisor and its workers, by direction.

``request`` and ``answer`` are messages of the protocol as they came from a client or a model's worker. The supervisor
passes them on and never reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

from normfold.serving.catalog.served import ServedModel

#: The beginning of the keys of changes of models.
MODEL = ("model",)


@dataclass(frozen=True)
class WorkerAnswer:
    """The answer of one worker to a request that all workers get."""

    worker: int
    #: The name of a class in ``errors``; empty if there was none.
    error: str
    #: The message of the error.
    details: str
    #: The answer; empty if there was an error.
    answer: bytes


@dataclass(frozen=True)
class Remember:
    """A part of a change that later workers repeat: it replaces the one with the same key."""

    #: Such as ("model", "surnames").
    key: tuple[str, ...]
    #: The request to repeat; None: forget every part whose key begins with ``key``.
    request: bytes | None


# From the supervisor to a worker.


@dataclass(frozen=True)
class Perform:
    """Carry out this request, as all workers do; the answer is ``Performed`` with the same number."""

    number: int
    #: The path of the method, "/package.Service/Method".
    method: str
    request: bytes


@dataclass(frozen=True)
class AllAnswered:
    """The answers to the worker's ``AskAll`` with the same number."""

    number: int
    answers: tuple[WorkerAnswer, ...]
    #: The counters, SnapshotResponse each, of the workers that did not answer or have ended.
    absent: tuple[bytes, ...]


@dataclass(frozen=True)
class ServerReady:
    """Whether the server as a whole is ready."""

    ready: bool


@dataclass(frozen=True)
class Failing:
    """Which models some workers cannot load, so that readiness is the same through each."""

    #: By model, the versions; 0: a worker has no version of it that answers.
    versions: tuple[tuple[str, tuple[int, ...]], ...]
    #: Lazy models that failed in another worker, and do not fail there any more.
    loaded: tuple[str, ...] = ()


@dataclass(frozen=True)
class RestoreCounters:
    """The counters of the worker's predecessor, to count on from; SnapshotResponse each."""

    counters: tuple[bytes, ...]


@dataclass(frozen=True)
class Serve:
    """The models that the other workers serve. A worker that starts loads the same, and nothing before this comes."""

    #: None: there are no others, so the repository decides; (): they serve nothing.
    models: tuple[ServedModel, ...] | None


@dataclass(frozen=True)
class Ping:
    """The answer is ``Pong``; a worker that does not give it is deaf, and is replaced."""


@dataclass(frozen=True)
class StartListening:
    """The worker has caught up with the others: clients may come."""

    #: Whether it must not listen without a model that the others serve, or served last.
    must_have_all: bool


@dataclass(frozen=True)
class LookForChanges:
    """From now on look for changes of the repository, for all workers."""

    #: Models that all workers are to load again first, because they have read different files of them.
    unlike: tuple[str, ...] = ()


@dataclass(frozen=True)
class LookNow:
    """Look for changes as soon as possible; the answer is ``Looked`` with the same number."""

    number: int


ToWorker = (
    Perform
    | AllAnswered
    | ServerReady
    | Failing
    | RestoreCounters
    | Serve
    | Ping
    | StartListening
    | LookForChanges
    | LookNow
)


# From a worker to the supervisor.


@dataclass(frozen=True)
class AskAll:
    """A client's request that concerns all workers; the answer is ``AllAnswered`` with the same number."""

    number: int
    #: The path of the method, "/package.Service/Method".
    method: str
    request: bytes
    #: Whether the request changes the server: changes are made one after the other, and later workers repeat them.
    change: bool
    remember: tuple[Remember, ...]

    @property
    def models(self) -> set[str]:
        """The names of the models that the request changes."""
        return {part.key[1] for part in self.remember if part.key[:1] == MODEL}


@dataclass(frozen=True)
class Performed:
    """The worker has carried out the ``Perform`` with the same number."""

    number: int
    answer: WorkerAnswer


@dataclass(frozen=True)
class ModelsReady:
    """Whether the worker's own models are ready."""

    ready: bool


@dataclass(frozen=True)
class CountersChanged:
    """The counters of a model version, or with empty names those of the process, as a SnapshotResponse."""

    model: str
    version: str
    counters: bytes


@dataclass(frozen=True)
class InService:
    """The models that the worker serves now."""

    models: tuple[ServedModel, ...]


@dataclass(frozen=True)
class Looked:
    """The worker has looked for changes since the ``LookNow`` with the same number came, and had them loaded."""

    number: int


@dataclass(frozen=True)
class Pong:
    """The answer to ``Ping``."""


@dataclass(frozen=True)
class ModelsLoaded:
    """The worker has tried to load every model."""

    #: A line for each model, and whether it was loaded.
    models: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Listening:
    """The worker listens on the port."""


@dataclass(frozen=True)
class StartFailed:
    """The worker cannot start."""

    #: The reason, in one line.
    message: str
    #: The exit code of the server because of it.
    exit_code: int


ToSupervisor = (
    AskAll
    | Performed
    | ModelsReady
    | CountersChanged
    | InService
    | Looked
    | Pong
    | ModelsLoaded
    | Listening
    | StartFailed
)
