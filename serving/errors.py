"""What can go wrong in serving, and the gRPC status that tells it.

ServingError                  UNKNOWN              never raised itself
├── StartError                                     the server cannot start; the message says how to mend it
│   ├── RuntimeMissing                             no onnxruntime, or two of them
│   └── DeviceUnavailable                          the asked-for execution provider cannot be had
├── LoadError                 INTERNAL             a model cannot be loaded; the message is its reason in the index
│   ├── ConfigError                                its config.pbtxt asks for what cannot be done
│   └── UnsafeModel                                its file is refused before onnxruntime sees it
├── InvalidRequest            INVALID_ARGUMENT     the caller's request; the message says what to send instead
├── NotFound                  NOT_FOUND            no such model, version, shared memory region or health name
├── Unavailable               UNAVAILABLE          not now: loading, unloaded, shutting down, queue full, timed out
├── Unimplemented             UNIMPLEMENTED        a part of the protocol that this server does not have
├── LoadRefused               INVALID_ARGUMENT     what a client is told when the model it asked to load failed
└── InternalError             INTERNAL             ours; the message is only an id, the log has the rest
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class ServingError(Exception):
    """The root of this tree; ``status`` is the gRPC status of the class, ``str(error)`` the status details."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN


class StartError(ServingError):
    """The server cannot start; one line for the person who started it."""

    status = grpc.StatusCode.INTERNAL
    #: What the process ends with.
    exit_code: ClassVar[int] = 1


class RuntimeMissing(StartError):
    """Not exactly one distribution of onnxruntime is installed."""


class DeviceUnavailable(StartError):
    """The execution provider that was asked for is not there, or did not take the model."""

    exit_code = 3


class LoadError(ServingError):
    """A model cannot be loaded; the others are not touched."""

    status = grpc.StatusCode.INTERNAL


class ConfigError(LoadError):
    """A model's configuration cannot be read, or asks for what this server cannot do."""


class UnsafeModel(LoadError):
    """A model file that is refused before onnxruntime sees it."""


class InvalidRequest(ServingError):
    """The request contradicts the protocol or the model's inputs and outputs: the caller's fault."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(ServingError):
    """Something that the request names does not exist."""

    status = grpc.StatusCode.NOT_FOUND


class Unavailable(ServingError):
    """The request is right, but cannot be answered now; trying again later may help."""

    status = grpc.StatusCode.UNAVAILABLE


class QueueFull(Unavailable):
    """As many requests wait for the model as its configuration lets wait."""


class Unimplemented(ServingError):
    """A part of the protocol that this server does not have."""

    status = grpc.StatusCode.UNIMPLEMENTED


class LoadRefused(ServingError):
    """A model that a client asked to load did not load."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class PollFailed(ServingError):
    """A model, or shared memory, that a client wants brought in is not there; Triton's status for it is INTERNAL."""

    status = grpc.StatusCode.INTERNAL


class AlreadyExists(ServingError):
    """Something of this name is there already."""

    status = grpc.StatusCode.ALREADY_EXISTS


class InternalError(ServingError):
    """Our own mistake, or the model's while it ran; the details are in the log under the id in the message."""

    status = grpc.StatusCode.INTERNAL
