"""The port that the workers of one server share with nobody else.

With SO_REUSEPORT any process of the same user may listen on a port beside others, and the kernel deals connections out
to all of them: right for the workers of one server, and wrong for a second server that was started by mistake. So the
supervisor holds the port for as long as it lives, with a socket that never listens: bound without SO_REUSEPORT, which
fails where anything else is there, and open to sharing only from then on.
"""

from __future__ import annotations

import errno
import socket

from normfold.serving.process.address import host_and_port


class Port:
    """The addresses of "host:port", held by this process."""

    def __init__(self, listen: str) -> None:
        """Hold ``listen``, "host:port"; for port 0 find a free one, once for all workers. Raises OSError."""
        host, port = host_and_port(listen)
        self._held: list[socket.socket] = []
        refused: OSError | None = None
        for family, kind, protocol, _, where in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections may not have ended
                sock.bind((where[0], port, *where[2:]))
            except OSError as error:
                sock.close()
                refused = error
                if error.errno == errno.EADDRINUSE:
                    self.release()
                    raise
                continue
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            port = sock.getsockname()[1]
            self._held.append(sock)
        if not self._held:  # this host may lack some addresses of a name, but not all
            assert refused is not None
            raise refused
        #: "host:port" with the real port.
        self.address = f"{listen.rpartition(':')[0]}:{port}"

    def release(self) -> None:
        """Let go of the port."""
        for sock in self._held:
            sock.close()
        self._held.clear()
