"""Ports for servers that are asked before they listen."""

from __future__ import annotations

import random
import socket

#: Below the ports that a connection gets for its own end (ip_local_port_range). A client that asks again and again for
#: a port in that range can be given the same one for its own end: then it is connected with itself, and the server
#: finds its port in use.
PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Return ``count`` ports of 127.0.0.1 on which nobody listens now."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports from {PORTS.start} to {PORTS.stop}")


def free_port() -> int:
    """Return one such port."""
    return free_ports(1)[0]
