"""The state of one model: of the whole, and of each of its versions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from normfold.protos import grpc_service as pb
from normfold.protos import metrics as mx
from normfold.serving.catalog import stage
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.stage import Stage

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
    """One model: its stage, and what its last load has left."""

    #: Changed by the methods below only.
    stage: Stage = Stage.OUT
    versions: dict[int, Version] = field(default_factory=dict)
    #: Why loading failed before any version was tried.
    reason: str = ""
    #: The versions that a load under way tries, and why they failed, "" for one that has not; {} before it knows them;
    #: None: no load is under way. Until it ends everything else stays as it was.
    loading: dict[int, str] | None = None
    #: The configuration, as its author wrote it, of the versions in service.
    written: bytes = b""
    #: Whether a version of it was ever in service; of a lazy model, whether it ever had a version to load.
    answered: bool = False
    #: How often a load that a request asked for has succeeded after one that failed.
    recoveries: int = 0
    #: Of a lazy model: the versions that were there when its folder was last looked at.
    present: tuple[int, ...] = ()
    #: The part of ``present`` that its next request puts in service, by its configuration.
    chosen: tuple[int, ...] = ()
    #: The counters of versions that were unloaded to make room.
    kept: dict[int, mx.ModelSnapshot] = field(default_factory=dict)

    @property
    def wanted(self) -> bool:
        """Whether it should be in service: the server or a client loads it, and no client has unloaded it since."""
        return self.stage not in stage.UNWANTED

    @property
    def lazy(self) -> bool:
        """Whether requests load it, and may have to do so again because it was unloaded to make room."""
        return self.stage in stage.LAZY

    @property
    def asleep(self) -> bool:
        """Whether its next request loads it, perhaps after a pause because such a load has failed."""
        return self.stage in stage.TO_LOAD

    @property
    def rests(self) -> bool:
        """Whether its next request loads it, and the last such load has not failed."""
        return self.stage in stage.RESTING

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

    def skip(self) -> None:
        """Leave it out of the start, because the other workers do not have it in service."""
        self.stage = Stage.OUT

    def lay_down(self, found: VersionsFound) -> None:
        """Have its next request load it."""
        self.stage, self.versions, self.reason = Stage.ASLEEP, {}, ""
        self.present, self.chosen = found
        self.answered |= bool(found.chosen)  # clients may have seen that it is ready

    def refuse(self, reason: str) -> None:
        """Note that a load has failed, and that no version answers; ``reason``: why it failed before it tried one."""
        self.stage, self.reason = stage.REFUSED.get(self.stage, self.stage), reason

    def put_in_service(
        self, loaded: Mapping[int, Version], failures: Mapping[int, str], there: Sequence[int] | None, lazy: bool
    ) -> None:
        """Take over what a load has made: the versions that ``loaded``, and why others did not.

        ``there`` are all versions that the model has; those that were not to be loaded are in service no more. None:
        the versions known before; those that were refused then, and not tried now, are still refused. ``lazy``: it may
        be unloaded to make room.
        """
        refused = {} if there is not None else dict(self.refused)
        if loaded:
            self.recoveries += self.stage is Stage.FAILED
            self.stage, self.reason = Stage.AWAKE if lazy else Stage.EAGER, ""
        else:
            self.refuse("")
        self.present = self.present if there is None else tuple(there)
        self.chosen, self.answered = tuple(sorted({*loaded, *failures})), self.answered or bool(loaded)
        others = {number: Version(refused.get(number, UNLOADED)) for number in self.versions}
        self.versions = {**others, **loaded, **{number: Version(reason) for number, reason in failures.items()}}
        for number, version in loaded.items():
            if version.model is not None and (kept := self.kept.pop(number, None)) is not None:
                version.model.statistics.add_snapshot(kept)

    def note_failures(self, loaded: Collection[int], failures: Mapping[int, str]) -> None:
        """Note why versions do not answer after a load that failed; the others go on. None answers: nothing changes."""
        if self.ready:
            failed = ", ".join(map(str, sorted(failures)))
            beside = dict.fromkeys(loaded, f"not put in service, because version {failed} failed to load")
            others = (beside | {**failures}).items()
            self.versions |= {number: Version(reason) for number, reason in others if number not in self.answering}

    def make_room(self) -> None:
        """Unload it, and have its next request load it again."""
        self.stage = Stage.ASLEEP
        self.kept |= {model.version: model.snapshot() for model in self.ready}
        self.versions = {n: each if each.model is None else Version(MADE_ROOM) for n, each in self.versions.items()}

    def unload(self, leave_out: bool) -> None:
        """Put no version in service; ``leave_out``: whatever becomes of its files."""
        self.stage = Stage.LEFT_OUT if leave_out else Stage.OUT
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
        if self.can_answer:
            return numbers
        failed = self.stage is Stage.FAILED or numbers or self.reason not in NO_FAILURE
        return (0, *numbers) if failed else numbers

    @property
    def outcome(self) -> object:
        """The part of its state that concerns other workers: a load that changes it is reported to them."""
        return self.can_answer, self.refused

    @property
    def known(self) -> bool:
        """Whether the model was ever tried, or will be."""
        return bool(self.versions or self.reason) or self.loads or self.asleep

    @property
    def loads(self) -> bool:
        """Whether a load is under way, or to come at the start."""
        return self.loading is not None or self.stage in stage.TO_START

    @property
    def can_answer(self) -> bool:
        """Whether requests are answered: at once, or after the load that they ask for."""
        return self.rests or bool(self.ready)

    def answers(self, number: int | None) -> bool:
        """``can_answer``, for version ``number``; None: for any."""
        if number is None:
            return self.can_answer
        if not self.rests:
            return number in self.answering
        failed = number in dict(self.refused) or (self.loading is not None and self.loading.get(number))
        return number in self.chosen and not failed

    @property
    def states(self) -> dict[int, tuple[str, str]]:
        """State and reason of each version, in ascending order."""
        known = {n: (UNAVAILABLE if each.model is None else READY, each.reason) for n, each in self.versions.items()}
        tried = {n: (UNAVAILABLE if why else LOADING, why) for n, why in (self.loading or {}).items()}
        answering = {n: state for n, state in known.items() if state[0] == READY}
        return dict(sorted({**known, **tried, **answering}.items()))

    @property
    def state(self) -> tuple[str, str]:
        """State and reason of the model as a whole, while no version is known; "" for a model that was never loaded."""
        why = self.reason or (NOT_LOADED if self.asleep else "")
        return LOADING if self.loads else UNAVAILABLE if why else "", why

    @property
    def because(self) -> str:
        """The reasons why versions are not ready, in brackets, for the end of a sentence; "" where there are none."""
        reasons = [self.reason, *(f"version {n}: {v.reason}" for n, v in sorted(self.versions.items()) if v.reason)]
        text = "; ".join(reason for reason in reasons if reason)
        return f" ({text})" if text else ""
