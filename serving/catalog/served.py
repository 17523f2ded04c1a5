"""A model as one worker of a server reports it: the workers exchange these reports, so that all serve the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServedModel:
    """A model as a worker serves it, or why it does not."""

    name: str
    #: The versions that answer.
    versions: tuple[int, ...]
    #: The ModelConfig as its author wrote it.
    config: bytes
    #: Why loading failed before any version was tried.
    reason: str
    #: Whether requests load it. Then ``versions`` are all that were there and ``config`` is empty; ``reason`` and
    #: ``refused`` say what failed in the last load that a request asked for.
    lazy: bool = False
    #: For each of ``versions``, the digest of its files; empty: any files will do.
    digests: tuple[str, ...] = ()
    #: The versions that do not answer, and why each.
    refused: tuple[tuple[int, str], ...] = ()
    #: Whether it should be in service.
    wanted: bool = True
    #: Whether a version of it was ever in service.
    answered: bool = True
    #: Whether a client has taken it out of service.
    left_out: bool = False
    #: The versions whose last load failed; 0: no version answers, because of that.
    failing: tuple[int, ...] = ()
    #: How often a load that a request asked for has succeeded after one that failed.
    recoveries: int = 0

    @property
    def answers(self) -> bool:
        """Whether requests are answered: by one of ``versions``, which a lazy model may still have to load."""
        return bool(self.versions) and 0 not in self.failing
