"""The models in service: which versions of which models are loaded, and why others are not."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from normfold.protos import grpc_service as pb
from normfold.protos import model_config as mc
from normfold.serving.catalog import config
from normfold.serving.catalog.load import LoadOptions, load
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.repository import Files, Repository, SentFolder, is_plain
from normfold.serving.errors import (
    ConfigError,
    InvalidRequest,
    LoadError,
    LoadRefused,
    NotFound,
    PollFailed,
    ServingError,
    StartError,
    Unavailable,
)
from normfold.serving.scheduling.inline import hop_seconds
from normfold.serving.wording import near, quoted

log = logging.getLogger(__name__)

READY, UNAVAILABLE, LOADING = "READY", "UNAVAILABLE", "LOADING"
UNLOADED = "unloaded"


@dataclass
class Version:
    """What is known of one version of a model."""

    state: str
    reason: str = ""
    model: Model | None = None


@dataclass
class Entry:
    """What is known of one model."""

    versions: dict[int, Version] = field(default_factory=dict)
    #: Why no version could even be tried.
    reason: str = ""

    @property
    def ready(self) -> list[Model]:
        """The versions that can answer, ascending."""
        return [v.model for _, v in sorted(self.versions.items()) if v.state == READY and v.model]

    @property
    def failed(self) -> bool:
        """Whether something that should be in service is not."""
        return bool(self.reason) or any(v.state != READY and v.reason != UNLOADED for v in self.versions.values())


class Catalog:
    """The models of a repository by name. Loading happens on a thread, everything else on the event loop."""

    def __init__(self, repository: Repository, options: LoadOptions, executor: Executor) -> None:
        self._repository, self._options, self._executor = repository, options, executor
        self._entries: dict[str, Entry] = {}
        self._lock = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []
        #: True once every model was tried.
        self.started = False
        #: False while other workers of the same server are not ready.
        self.others_ready = True

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after every change of what is ready."""
        self._listeners.append(listener)

    def changed(self) -> None:
        """Tell the listeners."""
        for listener in self._listeners:
            listener()

    @property
    def entries(self) -> dict[str, Entry]:
        """Every model that was tried, by name."""
        return self._entries

    def ready(self, strict: bool) -> bool:
        """Whether the server is: here and in every other worker each model was tried and, where ``strict``, loaded."""
        return self.others_ready and self.loaded(strict)

    def loaded(self, strict: bool) -> bool:
        """Whether every model was tried here and, where ``strict``, none failed."""
        return self.started and not (strict and any(entry.failed for entry in self._entries.values()))

    async def load_all(self, names: Iterable[str] | None = None) -> None:
        """Load every model of the repository, or only those named; a failure is kept as that model's reason."""
        found = self._repository.models()
        for name in found if names is None else names:
            try:
                await self.load(name)
            except StartError:
                raise
            except ServingError as error:
                log.error("model %s was not loaded: %s", quoted(name), error)
        self.started = True
        self.changed()

    async def load(self, name: str, override: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Load or reload a model; what serves goes on serving until the new versions are warm, and if they fail.

        ``override`` is a configuration in JSON that replaces config.pbtxt; ``files``, which need one, replace the
        model's folder. Raises PollFailed when there is no such model, LoadRefused when it fails.
        """
        async with self._lock:
            if not self._options.hop_seconds:
                self._options = replace(self._options, hop_seconds=await hop_seconds(self._executor))
            folder = self._folder(name, override, files or {})
            entry = self._entries.setdefault(name, Entry())
            before = entry.ready
            try:
                written, numbers = self._plan(folder, override)
            except LoadError as error:
                if not before:
                    entry.reason = str(error)
                    self.changed()
                raise LoadRefused(f"failed to load {quoted(name)}: {error}") from error
            loaded, failures = await self._load_versions(folder, written, numbers, entry)
            if failures and before:
                raise LoadRefused(_failed(name, failures))
            entry.reason = ""
            for number in set(entry.versions) - set(numbers):
                entry.versions[number] = Version(UNAVAILABLE, UNLOADED)
            entry.versions |= {number: Version(READY, "", model) for number, model in loaded.items()}
            entry.versions |= {number: Version(UNAVAILABLE, reason) for number, reason in failures.items()}
            self.changed()
            if failures:
                raise LoadRefused(_failed(name, failures))

    def _folder(self, name: str, override: str | None, files: Mapping[str, bytes]) -> Files:
        """Where the model's files come from. Raises PollFailed."""
        failed = _unpolled(name)
        if files:
            if override is None:
                raise PollFailed(f"{failed}: files in a load request need the parameter 'config' beside them")
            for path in files:
                if not is_plain(path):
                    raise PollFailed(f"{failed}: {quoted(path)} is not a path inside a model's folder")
            return SentFolder(name, files)
        folder = self._repository.models().get(name)
        if folder is None:
            raise PollFailed(f"{failed}: there is no such folder{near(name, self._repository.models())}")
        return folder

    def _plan(self, folder: Files, override: str | None) -> tuple[mc.ModelConfig, list[int]]:
        """The configuration as written and the versions that it puts in service. Raises PollFailed, LoadError."""
        if override is None:
            written = config.parse(folder.config_text() or "")
        else:
            try:
                written = config.parse_json(override)
            except ConfigError as error:  # Triton's status for what it cannot read is INTERNAL
                raise PollFailed(f"{_unpolled(folder.name)}: {error}") from error
        for note in config.check(written, folder.name):
            log.warning("model %s: %s", quoted(folder.name), note)
        numbers = config.versions_in_service(written, folder.versions())
        if not numbers:
            present = ", ".join(map(str, folder.versions())) or "none"
            raise LoadError(f"no version to serve: version folders are numbers such as 1, there are: {present}")
        return written, numbers

    async def _load_versions(
        self, folder: Files, written: mc.ModelConfig, numbers: list[int], entry: Entry
    ) -> tuple[dict[int, Model], dict[int, str]]:
        loaded: dict[int, Model] = {}
        failures: dict[int, str] = {}
        for number in numbers:
            if number not in entry.versions or entry.versions[number].state != READY:
                entry.versions[number] = Version(LOADING)
            try:
                loaded[number] = await asyncio.to_thread(load, folder, written, number, self._options, self._executor)
                log.log(logging.INFO if self.started else logging.DEBUG, "loaded %s", loaded[number].describe())
            except StartError:  # the device is not there: no model will load
                raise
            except ServingError as error:
                failures[number] = str(error)
            except Exception as error:
                log.exception("loading model %s version %d failed", quoted(folder.name), number)
                failures[number] = f"unexpected {type(error).__name__}; the log has it"
        return loaded, failures

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests on their way are answered. A model that is not loaded is no error."""
        async with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                return
            entry.reason = ""
            entry.versions = {number: Version(UNAVAILABLE, UNLOADED) for number in entry.versions}
            self.changed()

    def find(self, name: str, version: str) -> Model:
        """The model that answers for ``name`` and ``version`` ("": the highest ready one).

        Raises InvalidRequest for a version that is no number, NotFound, or Unavailable with the reason.
        """
        number = parse_version(version)
        entry = self._entries.get(name)
        if entry is None or not (entry.versions or entry.reason):
            raise NotFound(f"Request for unknown model: {quoted(name)} is not found{near(name, self._entries)}")
        ready = entry.ready
        if number is None:
            if not ready:
                raise NotFound(f"Request for unknown model: {quoted(name)} has no available versions{_because(entry)}")
            return ready[-1]
        found = entry.versions.get(number)
        if found is None:
            versions = ", ".join(str(model.version) for model in ready) or "none"
            raise NotFound(
                f"Request for unknown model: {quoted(name)} version {number} is not found; ready versions: {versions}"
            )
        if found.model is None or found.state != READY:
            why = f": {found.reason}" if found.reason else ""
            raise Unavailable(f"Request for unknown model: {quoted(name)} version {number} is not at ready state{why}")
        return found.model

    def index(self, only_ready: bool) -> list[pb.RepositoryIndexResponse.ModelIndex]:
        """Every model of the repository with the state and reason of each version; never loaded: the name alone."""
        rows = []
        for name in sorted({*self._repository.models(), *self._entries}):
            entry = self._entries.get(name, Entry())
            for number, version in sorted(entry.versions.items()):
                if version.state == READY or not only_ready:
                    rows.append((name, str(number), version.state, version.reason))
            if not entry.versions and not only_ready:
                rows.append((name, "", UNAVAILABLE if entry.reason else "", entry.reason))
        index = pb.RepositoryIndexResponse.ModelIndex
        return [index(name=n, version=v, state=s, reason=r) for n, v, s, r in rows]


def parse_version(text: str) -> int | None:
    """The version that a request names, None for "". As in Triton, what follows a number is passed over.

    >>> parse_version(""), parse_version(" 12"), parse_version("1.5")
    (None, 12, 1)
    """
    if not text:
        return None
    match = re.match(r"\s*([+-]?[0-9]{1,18})(?![0-9])", text)
    if match is None:
        raise InvalidRequest(
            f"failed to get model version from specified version string {quoted(text)} (details: stol), "
            "version should be an integral value > 0"
        )
    if int(match[1]) < 0:
        raise InvalidRequest(
            f"invalid model version specified {quoted(text)} , version should be an integral value > 0"
        )
    return int(match[1])


def _unpolled(name: str) -> str:
    """The beginning of Triton's sentence for a model that could not even be looked at."""
    return f"failed to load {quoted(name)}, failed to poll from model repository"


def _failed(name: str, failures: dict[int, str]) -> str:
    told = "; ".join(f"version {n} is at UNAVAILABLE state: {reason}" for n, reason in sorted(failures.items()))
    return f"load failed for model {quoted(name)}: {told}"


def _because(entry: Entry) -> str:
    reasons = [entry.reason, *(f"version {n}: {v.reason}" for n, v in sorted(entry.versions.items()) if v.reason)]
    told = "; ".join(reason for reason in reasons if reason)
    return f" ({told})" if told else ""
