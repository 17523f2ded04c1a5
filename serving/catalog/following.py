"""A worker that starts while others serve: it serves the same models and versions, whatever is on the disk now.

The repository may have changed since the others loaded it: a new version may be half copied, or was never loaded. For a
model or version that the others do not serve, the new worker reports the same state and reason as they do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from normfold.protos import model_config as mc
from normfold.serving.catalog import config
from normfold.serving.catalog.entry import Entry, Version
from normfold.serving.catalog.repository import ModelFolder, Repository
from normfold.serving.catalog.served import ServedModel
from normfold.serving.catalog.stage import Stage
from normfold.serving.errors import LoadError, ServingError
from normfold.serving.wording import quoted


def served(entries: Mapping[str, Entry]) -> Iterator[ServedModel]:
    """Every model that is known, and is not loading for the first time."""
    for name, entry in sorted(entries.items()):
        if entry.lazy:
            yield ServedModel(
                name,
                entry.present,
                b"",
                entry.reason,
                lazy=True,
                refused=entry.refused,
                failing=entry.failing,
                recoveries=entry.recoveries,
            )
        elif entry.versions or entry.reason:
            yield ServedModel(
                name,
                entry.answering,
                entry.written,
                entry.reason,
                digests=entry.digests,
                refused=tuple((n, v.reason) for n, v in sorted(entry.versions.items()) if v.model is None),
                wanted=entry.wanted,
                answered=entry.answered,
                left_out=entry.stage is Stage.LEFT_OUT,
                failing=entry.failing,
            )


class Others:
    """The other workers of the same server, as far as readiness depends on them."""

    def __init__(self) -> None:
        #: False while they are not ready.
        self.ready = True
        #: By model, the versions that a worker could not load, this one included; 0: a worker has none of its versions.
        self.failing: Mapping[str, tuple[int, ...]] = {}

    def answer(self, name: str, number: int | None) -> bool:
        """Whether no worker fails to load version ``number`` of ``name``; None: whether each has one that answers."""
        failing = self.failing.get(name)
        return failing is None or not {0, number} & {*failing}

    def without_refused(self, name: str, entry: Entry) -> tuple[int, ...]:
        """The versions of ``entry`` that no other worker has refused, while others answer there; all if none is left.

        What this worker alone knows to fail it may try again.
        """
        failing = {*self.failing.get(name, ())} - {*dict(entry.refused)}
        return (() if 0 in failing else tuple(n for n in entry.present if n not in failing)) or entry.present


class Following:
    """The models that others serve."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}
        #: These, and the models that they know and that should not be in service.
        self._known: tuple[ServedModel, ...] = ()
        #: Whether there are others; if not, the repository decides.
        self._active = False
        #: Whether there ever were others.
        self.followed = False

    def follow(self, models: Iterable[ServedModel] | None) -> None:
        """Follow these from now on; None: there are no others to follow."""
        self._active = models is not None
        self.followed = self.followed or self._active
        self._known = tuple(models or ())
        self._models = {model.name: model for model in self._known if model.wanted}

    def skip(self, entries: dict[str, Entry]) -> None:
        """Where there are others, do not load the models of ``entries`` that the others do not have in service.

        A lazy model of theirs is in service here, too, even if it is gone from the disk: its first request says so.
        """
        for name, entry in entries.items():
            if self._active and name not in self._models:
                entry.skip()
        for name in [name for name, model in self._models.items() if model.lazy and name not in entries]:
            entries[name] = Entry(Stage.AWAITED)

    def end(self, entries: dict[str, Entry]) -> dict[str, str]:
        """Follow the others no longer. Returns a sentence for each model that is served otherwise than they serve it.

        ``entries`` get the others' states and reasons of models and versions that are not in service there. A model
        that was skipped, and that the others do not know, was never loaded: its entry is removed.
        """
        lost = self._lost(entries)
        self._take_over(entries)
        self.follow(None)
        for name in [name for name, entry in entries.items() if not entry.known]:
            del entries[name]
        return lost

    def has(self, name: str, entry: Entry) -> bool:
        """Whether the model ``name`` with the state ``entry`` is as the others have it."""
        model = self._models.get(name)
        return (
            model is not None
            and not model.lazy
            and bool(model.versions)
            and (entry.answering, entry.written) == (model.versions, model.config)
            and not _changed(model, entry)
        )

    def plan(self, name: str) -> tuple[mc.ModelConfig, list[int]] | None:
        """The configuration and the versions that the others have in service; None: the repository decides.

        Raises LoadError where the others have none.
        """
        model = self._models.get(name)
        if model is None or model.lazy:
            return None
        if not model.versions:
            raise LoadError(f"the other workers do not serve it{_state(model).because}")
        return mc.ModelConfig.FromString(model.config), list(model.versions)

    def present(self, name: str) -> tuple[int, ...] | None:
        """The versions of a lazy model that the others count as there; None: the repository decides."""
        model = self._models.get(name)
        return model.versions if model is not None and model.lazy else None

    def _take_over(self, entries: dict[str, Entry]) -> None:
        for model in self._known:
            if model.lazy:
                entry = entries.get(model.name, Entry())
                if entry.asleep and 0 in model.failing:
                    entry.refuse(model.reason)
                    entry.versions = _state(model).versions
                continue
            entry = entries.setdefault(model.name, _state(model))
            if model.reason or (model.refused and not model.versions):
                entry.reason = model.reason
            entry.versions = _state(model).versions | entry.versions
            entry.answered |= model.answered
            if entry.stage is Stage.LEFT_OUT and not (model.wanted or model.left_out):
                entry.refuse(entry.reason)  # a client has tried to load it since: mended files put it in service

    def _lost(self, entries: Mapping[str, Entry]) -> dict[str, str]:
        found = {}
        for name, model in sorted(self._models.items()):
            entry = entries.get(name)
            if model.lazy or (entry is not None and not entry.wanted):
                continue
            absent = sorted(set(model.versions) - set(entry.answering if entry else ()))
            if absent:
                because = entry.because if entry else ""
                found[name] = f"{_which(name, absent)}, which the other workers serve, cannot be loaded{because}"
            elif entry is not None and (changed := _changed(model, entry)):
                found[name] = (
                    f"{_which(name, changed)} has changed on disk since the other workers loaded it: load the model "
                    "again in all workers (SIGHUP or RepositoryModelLoad), or put the old files back"
                )
        return found

    def behind(self, repository: Repository) -> list[str]:
        """The models that the others have otherwise than ``repository`` has them now; none if there are no others.

        It has changed while no worker looked at it.
        """
        if not self._active:
            return []
        folders = repository.models()
        names = sorted({*self._models, *folders})
        return [name for name in names if not _is_as(self._models.get(name), folders.get(name))]


def _state(model: ServedModel) -> Entry:
    """The state of ``model``, without the versions that answer."""
    versions = {number: Version(reason) for number, reason in model.refused}
    stage = Stage.EAGER if model.wanted else Stage.LEFT_OUT if model.left_out else Stage.OUT
    return Entry(stage, versions, model.reason, answered=model.answered)


def _which(name: str, versions: Iterable[int]) -> str:
    return f"{quoted(name)} version {', '.join(map(str, versions))}"


def _changed(model: ServedModel, entry: Entry) -> list[int]:
    """The versions that ``entry`` has from other contents of their files than ``model``."""
    theirs = dict(zip(model.versions, model.digests, strict=False))
    ours = zip(entry.answering, entry.digests, strict=True)
    return [number for number, digest in ours if theirs.get(number, digest) != digest]


def _is_as(model: ServedModel | None, folder: ModelFolder | None) -> bool:
    """Whether ``model`` is what ``folder`` puts in service."""
    if model is None or folder is None:
        return False
    try:
        if model.lazy:
            return tuple(folder.versions()) == model.versions
        written = config.parse(folder.config_text() or "")
        versions = config.versions_in_service(written, folder.versions())
    except (ServingError, OSError):
        return False
    return tuple(versions) == model.versions and written == mc.ModelConfig.FromString(model.config)
