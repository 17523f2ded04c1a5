"""The transports: each carries bytes between a client and the methods of ``rpc``, and knows nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from normfold.serving.rpc.methods import Method
    from normfold.serving.rpc.traffic import Traffic

#: Their names, the usual one first.
FRONTENDS = ("grpcio", "http2")


class Frontend(Protocol):
    """A server of methods, made of them, their traffic and the bytes of the largest message."""

    @property
    def address(self) -> str:
        """Where it listens, once it does."""

    async def start(self, address: str, reuse_port: bool = False) -> None:
        """Listen on "host:port" (port 0: any free one) or "unix:/path". Raises StartError.

        ``reuse_port`` shares the port with other processes that do so, too; else it is this one's alone.
        """

    async def stop(self, grace_seconds: float) -> None:
        """Close the port and every connection; calls on their way may take ``grace_seconds`` longer."""


def frontend(name: str) -> Callable[[Iterable[Method], Traffic, int], Frontend]:
    """The frontend of a name in FRONTENDS; only that one is imported."""
    if name == "http2":
        from normfold.serving.frontends.http2.frontend import Http2Frontend

        return Http2Frontend
    from normfold.serving.frontends.grpcio import GrpcioFrontend

    return GrpcioFrontend
