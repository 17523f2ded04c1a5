"""Models that failed to load for a reason outside their files, such as too little memory: a later load may succeed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from normfold.serving.catalog.entry import Entry
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
    def noted(self, name: str, sent: bool = False, asked: Entry | None = None) -> Iterator[None]:
        """Note how the load of ``name`` in this block ends.

        A StartError counts, too: a device may be away for a while. A model that a client has ``sent`` does not: the
        files that were sent are not kept, and a later load would put those of the model's folder in service instead.
        A model that a request has ``asked`` for counts where a version answers all the same: else the next request
        tries it again.
        """
        self.names.discard(name)
        try:
            yield
        except (LoadHindered, StartError):
            if not sent and (asked is None or asked.ready):
                self.names.add(name)
            raise
        if sent:
            self.sent.add(name)
        else:
            self.sent.discard(name)
