"""The transports, one module or folder each: they carry bytes between a client and the methods of ``rpc``.

Nothing that knows models comes in here: a frontend loads neither the catalog nor onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from normfold.serving.access.access import Access
    from normfold.serving.access.tls import Tls
    from normfold.serving.frontends.access_log import AccessLog
    from normfold.serving.frontends.limits import ClientLimits
    from normfold.serving.rpc.methods import Method
    from normfold.serving.rpc.traffic import Traffic

#: The names of the transports, the default first.
FRONTENDS = ("http2", "grpcio")


class Frontend(Protocol):
    """A server of methods.

    It is made of them, their traffic, the size limit of a message, the limits of clients, who is admitted, its TLS, and
    its access log.
    """

    @property
    def address(self) -> str:
        """The address that it listens on; empty until it does."""

    @property
    def freed_bytes(self) -> int:
        """The bytes that were held for clients and are not any more, since the server began."""

    async def start(self, address: str, reuse_port: bool = False) -> None:
        """Listen on "host:port" (port 0: any free one) or "unix:/path". Raises StartError.

        With ``reuse_port`` other processes that set it, too, may listen on the same port; without, none may.
        """

    async def drain(self, most_seconds: float) -> None:
        """Close the port, as far as calls may still come, and ask all clients to go elsewhere."""

    async def stop(self, grace_seconds: float) -> bool:
        """Close the port and every connection; whether all calls under way ended within ``grace_seconds``."""


def frontend(
    name: str,
) -> Callable[[Iterable[Method], Traffic, int, ClientLimits, Access | None, Tls | None, AccessLog | None], Frontend]:
    """The class of the frontend with this name of FRONTENDS; only that one is imported."""
    if name == "http2":
        from normfold.serving.frontends.http2.frontend import Http2Frontend

        return Http2Frontend
    from normfold.serving.frontends.grpcio import GrpcioFrontend

    return GrpcioFrontend
