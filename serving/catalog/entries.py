"""The state of the models: of each version, of each model, and whether all that should be in service are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from normfold.serving.catalog.model import Model
from normfold.serving.errors import NotFound, Unavailable
from normfold.serving.wording import quoted

READY, UNAVAILABLE, LOADING = "READY", "UNAVAILABLE", "LOADING"
UNLOADED = "unloaded"


@dataclass
class Version:
    """The state of one version of a model."""

    state: str
    reason: str = ""
    model: Model | None = None


@dataclass
class Entry:
    """The state of one model."""

    versions: dict[int, Version] = field(default_factory=dict)
    #: Why loading failed before any version was tried.
    reason: str = ""
    #: Whether it should be in service: it is one of the models that the server loads at its start, or a client loaded
    #: it. Until a client unloads it.
    wanted: bool = False
    #: Whether a load is under way, or to come at the start.
    loading: bool = False
    #: The configuration, as its author wrote it, of the versions in service.
    written: bytes = b""

    @property
    def answering(self) -> tuple[int, ...]:
        """The numbers of the versions that can answer, in ascending order."""
        return tuple(model.version for model in self.ready)

    @property
    def ready(self) -> list[Model]:
        """The versions that can answer, in ascending order."""
        return [v.model for _, v in sorted(self.versions.items()) if v.state == READY and v.model]

    @property
    def known(self) -> bool:
        """Whether the model was ever tried, or will be."""
        return bool(self.versions or self.reason or self.loading)

    @property
    def state(self) -> str:
        """The state of the whole, where no version is known yet; "" for a model that was never loaded."""
        return LOADING if self.loading else UNAVAILABLE if self.reason else ""

    @property
    def because(self) -> str:
        """The reasons why versions are not ready, in brackets, for the end of a sentence; "" where there are none."""
        reasons = [self.reason, *(f"version {n}: {v.reason}" for n, v in sorted(self.versions.items()) if v.reason)]
        text = "; ".join(reason for reason in reasons if reason)
        return f" ({text})" if text else ""


def rows(name: str, entry: Entry, only_ready: bool) -> list[tuple[str, str, str, str]]:
    """Name, version, state and reason of each version; of a model without versions, of the whole."""
    if not entry.versions:
        return [] if only_ready else [(name, "", entry.state, entry.reason)]
    every = ((name, str(number), each.state, each.reason) for number, each in sorted(entry.versions.items()))
    return [row for row in every if row[2] == READY or not only_ready]


def in_service(entries: Iterable[Entry]) -> bool:
    """Whether every model that should be in service has a version that answers.

    This is the one rule of readiness. A version that fails, or that is still loading, changes nothing while another
    version of its model answers.
    """
    return all(entry.ready for entry in entries if entry.wanted)


def after_refusal(
    before: Mapping[int, Version], loaded: Mapping[int, Model], failures: Mapping[int, str]
) -> dict[int, Version]:
    """The versions after a load of which some failed: those that answered go on, the others have their reasons."""
    failed = ", ".join(map(str, sorted(failures)))
    reasons = dict.fromkeys(loaded, f"not put in service, because version {failed} failed to load") | {**failures}
    kept = {number for number, version in before.items() if version.state == READY}
    return {**before, **{n: Version(UNAVAILABLE, reason) for n, reason in reasons.items() if n not in kept}}


def answering(entry: Entry, name: str, number: int | None) -> Model:
    """The version of ``name`` that answers requests for version ``number``; None is the highest that is ready.

    Raises NotFound, or Unavailable with the reason.
    """
    unknown, ready = f"Request for unknown model: {quoted(name)}", entry.ready
    if entry.loading and not ready and (number is None or not entry.versions):
        raise Unavailable(f"{unknown} is not at ready state: it is still loading")
    if number is None:
        if not ready:
            raise NotFound(f"{unknown} has no available versions{entry.because}")
        return ready[-1]
    found = entry.versions.get(number)
    if found is None:
        versions = ", ".join(str(model.version) for model in ready) or "none"
        raise NotFound(f"{unknown} version {number} is not found; ready versions: {versions}")
    if found.model is None or found.state != READY:
        why = f": {found.reason}" if found.reason else ": it is still loading" if found.state == LOADING else ""
        raise Unavailable(f"{unknown} version {number} is not at ready state{why}")
    return found.model
