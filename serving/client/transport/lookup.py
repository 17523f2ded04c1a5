"""The addresses of a host. A thread asks for a name: a silent name server keeps it for half a minute.

No call waits for that thread behind its deadline, Python takes Ctrl-C meanwhile, and its end waits for no such thread.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

Found = list[Any] | OSError


class Lookup(threading.Thread):
    """Asks for the addresses of a name."""

    def __init__(self, host: str, port: int, tell: Callable[[Found], object]) -> None:
        """``tell`` is called in this thread with what ``socket.getaddrinfo`` has found, or with its error."""
        super().__init__(name=f"the addresses of {host}", daemon=True)
        self._place, self._tell = (host, port), tell

    def run(self) -> None:
        """Ask, and tell."""
        try:
            self._tell(_places(*self._place))
        except OSError as error:
            self._tell(error)

    def begin(self) -> None:
        """Start the thread; where no further one can be started, ask in this thread."""
        try:
            self.start()
        except RuntimeError:  # there are too many threads, or Python ends
            self.run()


#: The questions for names that a Client has asked, with the place for the answer.
_ASKED: dict[tuple[str, int], tuple[Lookup, SimpleQueue[Found]]] = {}


def numbered(host: str, port: int) -> list[Any] | None:
    """The result of ``socket.getaddrinfo`` for a ``host`` that is a number, such as 127.0.0.1; None: it is a name."""
    try:
        return _places(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return None


def places_by(deadline: float, host: str, port: int) -> list[Any]:
    """The result of ``socket.getaddrinfo`` by ``deadline``. Raises OSError, or TimeoutError.

    Calls that end before there is an answer leave their question to the next ones: there is one thread for each name.
    """
    if (places := numbered(host, port)) is not None:
        return places
    lookup, answer = _ASKED.get((host, port), (None, None))
    if lookup is None or answer is None or not lookup.is_alive():
        answer = SimpleQueue()
        lookup = Lookup(host, port, answer.put)
        lookup.begin()
        _ASKED[host, port] = lookup, answer
    try:
        found = answer.get(timeout=max(deadline - monotonic(), 0))
    except Empty:
        raise TimeoutError from None
    answer.put(found)  # for other threads that wait for it
    _ASKED.pop((host, port), None)
    if isinstance(found, OSError):
        raise found
    return found


def _places(host: str, port: int, flags: int = 0) -> list[Any]:
    """The result of ``socket.getaddrinfo``. Raises OSError, also for a text that cannot be a name."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # a label that is empty, or longer than 63 bytes
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from None
