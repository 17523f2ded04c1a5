"""The state of the models: of each version, of each model, and whether all that should be in service are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from normfold.protos import grpc_service as pb
from normfold.protos import metrics as mx
from normfold.serving.catalog.model import Model
from normfold.serving.errors import NotFound, Unavailable
from normfold.serving.wording import quoted

READY, UNAVAILABLE, LOADING = "READY", "UNAVAILABLE", "LOADING"
UNLOADED = "unloaded"
NOT_LOADED = "not loaded yet: loads at its first request"
MADE_ROOM = "unloaded to make room: loads at its next request"
#: The reasons of versions that their next request loads.
ASLEEP = (NOT_LOADED, MADE_ROOM)
#: The reasons of versions whose last load has not failed.
PLAIN = (UNLOADED, *ASLEEP)
#: The reasons, and "" for none, of a model or a row of the index whose last load has not failed.
NO_FAILURE = ("", *PLAIN)


class VersionsFound(NamedTuple):
    """The versions of a lazy model on disk."""

    present: tuple[int, ...]
    #: Those that its configuration puts in service.
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class Version:
    """What the last load of one version of a model has left."""

    #: Why it does not answer; of one that answers, a remark.
    reason: str
    #: None: it does not answer.
    model: Model | None = None


@dataclass
class Entry:
    """The state of one model."""

    #: The versions, as the last load has left them.
    versions: dict[int, Version] = field(default_factory=dict)
    #: Why loading failed before any version was tried.
    reason: str = ""
    #: Whether it should be in service: the server loads it at its start, or a client has loaded it, and no client has
    #: unloaded it since.
    wanted: bool = False
    #: Whether a load is under way, or to come at the start.
    loading: bool = False
    #: The versions that the load under way tries, once it knows them; until it ends ``versions`` stay as they were.
    coming: tuple[int, ...] = ()
    #: Whether a load of it has ended, well or not.
    tried: bool = False
    #: The configuration, as its author wrote it, of the versions in service.
    written: bytes = b""
    #: Whether a version of it was ever in service; of a lazy model, whether it ever had a version to load.
    answered: bool = False
    #: Whether a client has taken it out of service: then no change of its files puts it back.
    left_out: bool = False
    #: Whether requests load it, and may have to do so again because it was unloaded to make room.
    lazy: bool = False
    #: Whether its next request loads it: it is lazy, should be in service, and is not in memory.
    asleep: bool = False
    #: Whether the last load that a request asked for failed.
    failed: bool = False
    #: How often a load that a request asked for has succeeded after one that failed.
    recoveries: int = 0
    #: Of a lazy model: the versions that were there when its folder was last looked at.
    present: tuple[int, ...] = ()
    #: The part of ``present`` that its next request puts in service, by its configuration.
    chosen: tuple[int, ...] = ()
    #: The counters of versions that were unloaded to make room.
    kept: dict[int, mx.ModelSnapshot] = field(default_factory=dict)

    @property
    def answering(self) -> tuple[int, ...]:
        """The numbers of the versions that can answer, in ascending order."""
        return tuple(model.version for model in self.ready)

    @property
    def digests(self) -> tuple[str, ...]:
        """The digest of the files of each of these versions."""
        return tuple(model.digest for model in self.ready)

    @property
    def ready(self) -> list[Model]:
        """The versions that can answer, in ascending order."""
        return [version.model for _, version in sorted(self.versions.items()) if version.model is not None]

    def unload(self, leave_out: bool) -> None:
        """Put no version in service; ``leave_out``: whatever becomes of its files."""
        self.wanted, self.loading, self.left_out = False, False, leave_out
        self.lazy = self.asleep = self.failed = False
        self.versions = dict.fromkeys(self.versions or self.present, Version(UNLOADED))
        self.reason = "" if self.versions else UNLOADED
        self.kept.clear()

    def statistics(self) -> Iterator[tuple[int, pb.ModelStatistics]]:
        """The counters of each version that answers, or that was unloaded to make room."""
        for model in self.ready:
            yield model.version, model.statistics.message(model.name, str(model.version))
        for number, kept in self.kept.items():
            yield number, kept.statistics

    def snapshots(self) -> Iterator[mx.ModelSnapshot]:
        """The counters and histograms of the same versions."""
        yield from (model.snapshot() for model in self.ready)
        yield from self.kept.values()

    def restore(self, counters: mx.ModelSnapshot) -> None:
        """Count on from ``counters`` of an earlier process; those of a version that is not there are dropped."""
        number = int(counters.statistics.version)
        for model in self.ready:
            if model.version == number:
                model.statistics.add_snapshot(counters)
                return
        if self.lazy and number in self.present:
            self.kept[number] = counters

    def put_in_service(
        self, loaded: Mapping[int, Version], failures: Mapping[int, str], there: Sequence[int] | None
    ) -> None:
        """Take over what a load has made: the versions that ``loaded``, and why others did not.

        ``there`` are all versions that the model has; those that were not to be loaded are in service no more. None:
        the versions known before; those that were refused then, and not tried now, are still refused.
        """
        refused = {} if there is not None else dict(self.refused)
        self.reason, self.wanted, self.left_out = "", self.wanted or bool(loaded), False
        self.present = self.present if there is None else tuple(there)
        self.chosen, self.answered = tuple(sorted({*loaded, *failures})), self.answered or bool(loaded)
        others = {number: Version(refused.get(number, UNLOADED)) for number in self.versions}
        self.versions = {**others, **loaded, **{number: Version(reason) for number, reason in failures.items()}}
        for number, version in loaded.items():
            if version.model is not None and (kept := self.kept.pop(number, None)) is not None:
                version.model.statistics.add_snapshot(kept)

    @property
    def refused(self) -> tuple[tuple[int, str], ...]:
        """The versions that could not be loaded, and why."""
        if not self.versions:  # the usual case where thousands of models are lazy
            return ()
        every = sorted(self.versions.items())
        return tuple((n, each.reason) for n, each in every if each.model is None and each.reason not in PLAIN)

    @property
    def failing(self) -> tuple[int, ...]:
        """The numbers of the refused versions, and before them 0 if no version answers because a load failed.

        What failed counts as failing until it is loaded, also while it is tried again.
        """
        numbers = tuple(number for number, _ in self.refused)
        failed = self.failed or bool(numbers) or self.reason not in NO_FAILURE
        return (0, *numbers) if failed and not self.can_answer else numbers

    @property
    def outcome(self) -> object:
        """The part of its state that concerns other workers: a load that changes it is reported to them."""
        return self.can_answer, self.refused

    @property
    def known(self) -> bool:
        """Whether the model was ever tried, or will be."""
        return bool(self.versions or self.reason or self.loading or self.asleep)

    @property
    def rests(self) -> bool:
        """Whether its next request loads it, and the last such load has not failed."""
        return self.asleep and not self.failed

    @property
    def can_answer(self) -> bool:
        """Whether requests are answered: at once, or after the load that they ask for."""
        return self.rests or bool(self.ready)

    def answers(self, number: int | None) -> bool:
        """``can_answer``, for version ``number``; None: for any."""
        if number is None:
            return self.can_answer
        return number in (self.chosen if self.rests else self.answering)

    @property
    def states(self) -> dict[int, tuple[str, str]]:
        """State and reason of each version, in ascending order."""
        known = {n: (UNAVAILABLE if each.model is None else READY, each.reason) for n, each in self.versions.items()}
        coming = {n: (LOADING, "") for n in self.coming if known.get(n, ("", ""))[0] != READY}
        return dict(sorted({**known, **coming}.items()))

    @property
    def state(self) -> str:
        """The state of the model as a whole, while no version is known; "" for a model that was never loaded."""
        return LOADING if self.loading else UNAVAILABLE if self.why else ""

    @property
    def why(self) -> str:
        """Why the model as a whole is not in service, while no version is known."""
        return self.reason or (NOT_LOADED if self.asleep else "")

    @property
    def because(self) -> str:
        """The reasons why versions are not ready, in brackets, for the end of a sentence; "" where there are none."""
        reasons = [self.reason, *(f"version {n}: {v.reason}" for n, v in sorted(self.versions.items()) if v.reason)]
        text = "; ".join(reason for reason in reasons if reason)
        return f" ({text})" if text else ""


def rows(name: str, entry: Entry, only_ready: bool) -> list[tuple[str, str, str, str]]:
    """Name, version, state and reason of each version; one row for a model without versions."""
    if not (states := entry.states):
        return [] if only_ready else [(name, "", entry.state, entry.why)]
    every = ((name, str(number), *state) for number, state in states.items())
    return [row for row in every if row[2] == READY or not only_ready]


def index(
    entries: Mapping[str, Entry], names: Collection[str], only_ready: bool
) -> list[pb.RepositoryIndexResponse.ModelIndex]:
    """The rows of ``names``; one that has no entry was never loaded."""
    found = [row for name in sorted(names) for row in rows(name, entries.get(name, Entry()), only_ready)]
    model_index = pb.RepositoryIndexResponse.ModelIndex
    return [model_index(name=n, version=v, state=s, reason=r) for n, v, s, r in found]


def lines(entries: Mapping[str, Entry]) -> list[tuple[str, bool]]:
    """A line for each model version, and whether it was loaded; one for all that are not loaded yet."""
    found, asleep = [], 0
    for name, entry in entries.items():
        found += [(model.describe(), True) for model in entry.ready]
        if entry.rests:
            asleep += 1
            continue
        for number, version in entry.versions.items():
            if version.model is None:
                found.append((f"{name} version {number} was not loaded: {version.reason}", False))
        if entry.reason:
            found.append((f"{name} was not loaded: {entry.reason}", False))
    if asleep:
        found.append((f"{asleep:,} model{'s' if asleep > 1 else ''}, each loaded by its first request", True))
    return found


def in_service(entries: Collection[Entry], may_be_none: bool) -> bool:
    """Whether every model that should be in service has a version that answers.

    This is the one rule of readiness. A version that fails, or that is still loading, changes nothing while another
    version of its model answers. Lazy models are not waited for: their first request shows whether they load. Without
    any model the result is ``may_be_none``: other workers may have had models before, and serve none any more.
    """
    return bool(entries or may_be_none) and all(entry.lazy or entry.ready for entry in entries if entry.wanted)


def after_refusal(
    before: Mapping[int, Version], loaded: Mapping[int, Model], failures: Mapping[int, str]
) -> dict[int, Version]:
    """The versions after a load of which some failed: those that answered go on, the others have their reasons."""
    failed = ", ".join(map(str, sorted(failures)))
    reasons = dict.fromkeys(loaded, f"not put in service, because version {failed} failed to load") | {**failures}
    kept = {number for number, version in before.items() if version.model is not None}
    return {**before, **{n: Version(reason) for n, reason in reasons.items() if n not in kept}}


def go_on(entry: Entry | None) -> str:
    """The end of a sentence about a load that failed: the versions that answer all the same; "" where none does."""
    numbers = [] if entry is None else entry.answering
    if not numbers:
        return ""
    several = len(numbers) > 1
    shown = ", ".join(map(str, numbers))
    return f"; version{'s' if several else ''} {shown} {'go' if several else 'goes'} on answering"


def load_failed(name: str, failures: Mapping[int, str]) -> str:
    """The sentence about versions that failed to load, with the reason of each."""
    reasons = "; ".join(f"version {n} is at UNAVAILABLE state: {reason}" for n, reason in sorted(failures.items()))
    return f"load failed for model {quoted(name)}: {reasons}"


def answering(entry: Entry, name: str, number: int | None) -> Model:
    """The version of ``name`` that answers requests for version ``number``; None is the highest that is ready.

    Raises NotFound, or Unavailable with the reason.
    """
    unknown, ready = f"Request for unknown model: {quoted(name)}", entry.ready
    if entry.loading and not ready and (number is None or not entry.states):
        raise Unavailable(f"{unknown} is not at ready state: it is still loading")
    if entry.rests:
        raise Unavailable(f"{unknown} is not at ready state: {NOT_LOADED}")
    if number is None:
        if not ready:
            raise NotFound(f"{unknown} has no available versions{entry.because}")
        return ready[-1]
    found = entry.versions.get(number)
    if found is not None and found.model is not None:
        return found.model
    if number in entry.coming:
        raise Unavailable(f"{unknown} version {number} is not at ready state: it is still loading")
    if found is None:
        versions = ", ".join(str(model.version) for model in ready) or "none"
        raise NotFound(f"{unknown} version {number} is not found; ready versions: {versions}")
    raise Unavailable(f"{unknown} version {number} is not at ready state: {found.reason}")
