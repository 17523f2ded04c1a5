"""Models that did not load for a reason that may pass: it lies not in their files, so these need not change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from normfold.serving.errors import Hindered, LoadError, LoadHindered, LoadRefused, StartError


def refusal(errors: Iterable[LoadError]) -> type[LoadRefused]:
    """The class of the answer to whoever asked for a load that failed with these errors."""
    return LoadHindered if any(isinstance(error, Hindered) for error in errors) else LoadRefused


class HinderedModels:
    """The names of these models."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        #: The models that serve what a client has sent.
        self.sent: set[str] = set()

    @contextlib.contextmanager
    def noted(self, name: str, sent: bool = False) -> Iterator[None]:
        """Note how the load of ``name`` in this block ends: a device, too, may be away for a while.

        What a client has ``sent`` is not kept, and a load from the model's folder would put something else in service.
        """
        self.names.discard(name)
        try:
            yield
        except (LoadHindered, StartError):
            if not sent:
                self.names.add(name)
            raise
        if sent:
            self.sent.add(name)
        else:
            self.sent.discard(name)
