"""The errors of serving, and the gRPC status that a caller gets for each.

ServingError                  UNKNOWN              never raised itself
├── StartError                INTERNAL             the server cannot start; the message says what to do about it
│   ├── RuntimeMissing                             no onnxruntime, or two of them
│   ├── DeviceUnavailable                          the execution provider that was asked for cannot be used
│   └── WorkersError                               the workers cannot be started, or kept running
├── LoadError                 INTERNAL             a model cannot be loaded; the message is its reason in the index
│   ├── Hindered                                   not now: the reason may pass, and lies not in its files
│   ├── ConfigError                                its config.pbtxt asks for something that this server cannot do
│   └── UnsafeModel                                its file is refused before onnxruntime sees it
├── InvalidRequest            INVALID_ARGUMENT     the caller's mistake; the message says what to send instead
├── NotFound                  NOT_FOUND            no such model, version, shared memory region or health name
├── Unavailable               UNAVAILABLE          not now: loading, unloaded, shutting down, timed out
│   ├── NotOffered                                 never here: the settings of this server do not allow it
│   └── QueueFull                                  not now: as many requests wait as the model's configuration allows
├── Overloaded                RESOURCE_EXHAUSTED   not now: too much waits already, or it would wait too long
├── NoMemory                  RESOURCE_EXHAUSTED   never here: the run would take more memory than the server may have
├── TooManyRegions            RESOURCE_EXHAUSTED   no more shared memory is registered; the message says what to do
├── Unimplemented             UNIMPLEMENTED        a part of the protocol that this server does not have
├── OutOfMemory               RESOURCE_EXHAUSTED   a run or its answer needs more memory than there is
├── LoadRefused               INVALID_ARGUMENT     the answer to a client whose model did not load
│   └── LoadHindered                               the same where the reason may pass
├── PollFailed                INTERNAL             a model or shared memory that a client named does not exist
├── AlreadyExists             ALREADY_EXISTS       the name is in use
├── Unauthenticated           UNAUTHENTICATED      the server has tokens, and the call has none, or one that is unknown
├── PermissionDenied          PERMISSION_DENIED    the token of the call does not allow it
└── InternalError             INTERNAL             our mistake; the message is only an id, the log has the rest
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import ClassVar


class Status(IntEnum):
    """gRPC's status codes by name, with the numbers that travel in ``grpc-status``."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServingError(Exception):
    """The root of this tree; ``status`` is the gRPC status of the class, ``str(error)`` the status details."""

    status: ClassVar[Status] = Status.UNKNOWN
    #: When the caller should try again, in seconds from now; negative: not at all. None: the error says nothing of it.
    retry_seconds: float | None = None


class StartError(ServingError):
    """The server cannot start; the message is one line for the person who started it."""

    status = Status.INTERNAL
    #: The exit code of the process.
    exit_code: int = 1


class RuntimeMissing(StartError):
    """Not exactly one distribution of onnxruntime is installed."""


class DeviceUnavailable(StartError):
    """The execution provider that was asked for is not installed, or did not accept the model."""

    exit_code = 3


class WorkersError(StartError):
    """The workers of a server cannot be started, or kept running."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LoadError(ServingError):
    """A model cannot be loaded; the others are not affected."""

    status = Status.INTERNAL


class Hindered(LoadError):
    """A model cannot be loaded now; the reason may pass, because it lies not in the model's files."""


class ConfigError(LoadError):
    """A model's configuration cannot be read, or asks for something that this server cannot do."""


class UnsafeModel(LoadError):
    """A model file is refused before onnxruntime sees it."""


class InvalidRequest(ServingError):
    """The request contradicts the protocol or the model's inputs and outputs: the caller's fault."""

    status = Status.INVALID_ARGUMENT


class NotFound(ServingError):
    """Something that the request names does not exist."""

    status = Status.NOT_FOUND


class Unavailable(ServingError):
    """The request is right, but cannot be answered now; trying again later may help."""

    status = Status.UNAVAILABLE


class NotOffered(Unavailable):
    """This server does not offer it, by its settings; another try gets the same answer. The status is Triton's."""

    retry_seconds = -1.0


class QueueFull(Unavailable):
    """As many requests wait for the model as its configuration allows. ``retry_seconds``: as in ServingError."""

    def __init__(self, message: str, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class Overloaded(ServingError):
    """So much waits already that this request would wait too long, or would take too much memory while it waits."""

    status = Status.RESOURCE_EXHAUSTED
    #: The first bytes of the request that decide, beside its size, the caller and the moment; 0: other things do, too.
    alike: int = 0
    #: The time after which the caller may try again, in seconds.
    retry_seconds: float
    #: Counts more requests that were refused for the same reason.
    again: Callable[[int], None] | None = None
    #: Looks whether a request like it on a connection would be refused now, too, without reading it; with the reason.
    still: Callable[[object], Overloaded | None] | None = None

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class NoMemory(ServingError):
    """The run of this request would take more memory than the server may have; it is refused before it is run."""

    status = Status.RESOURCE_EXHAUSTED
    retry_seconds = -1.0


class TooManyRegions(ServingError):
    """There are as many regions of shared memory, or open files, as there may be."""

    status = Status.RESOURCE_EXHAUSTED
    retry_seconds = -1.0


class OutOfMemory(ServingError):
    """A run, or its answer in shared memory, needs more memory than there is."""

    status = Status.RESOURCE_EXHAUSTED


class Unimplemented(ServingError):
    """The request needs a part of the protocol that this server does not have."""

    status = Status.UNIMPLEMENTED


class LoadRefused(ServingError):
    """A model that a client asked to load did not load."""

    status = Status.INVALID_ARGUMENT


class LoadHindered(LoadRefused):
    """A model did not load for a reason that may pass."""


class PollFailed(ServingError):
    """A client asks to load a model, or to register shared memory, that does not exist; Triton answers INTERNAL."""

    status = Status.INTERNAL


class AlreadyExists(ServingError):
    """The name is in use already."""

    status = Status.ALREADY_EXISTS


class Unauthenticated(ServingError):
    """The server wants a token, and the call has none that it knows."""

    status = Status.UNAUTHENTICATED


class PermissionDenied(ServingError):
    """The token of the call is known, and does not allow the call."""

    status = Status.PERMISSION_DENIED


class InternalError(ServingError):
    """Our own mistake, or the model's while it ran; the details are in the log under the id in the message."""

    status = Status.INTERNAL
