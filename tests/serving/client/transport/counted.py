"""A server that counts connections and calls, for tests of several of them."""

from __future__ import annotations

from .peer import Peer


class Counted:
    """Answers every call, and counts connections. No answer is sent before ``held`` requests have come."""

    def __init__(self, held: int = 1, **settings: int) -> None:
        self.held, self.settings = held, settings
        self.peers: list[Peer] = []
        self.at_once: list[int] = []

    def __call__(self, peer: Peer) -> None:
        self.peers.append(peer)
        peer.greet(**self.settings)
        numbers: list[int] = []
        while True:
            numbers.append(peer.request())
            if len(numbers) >= self.held:
                self.at_once.append(len(numbers))
                for number in reversed(numbers):
                    peer.answer(number)
                numbers.clear()
