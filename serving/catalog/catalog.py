"""The models in service: which versions of them are loaded, and why others are not."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from normfold.protos import grpc_service as pb
from normfold.protos import model_config as mc
from normfold.serving.catalog import config
from normfold.serving.catalog.entries import (
    LOADING,
    READY,
    UNAVAILABLE,
    UNLOADED,
    Entry,
    Version,
    after_refusal,
    answering,
    in_service,
)
from normfold.serving.catalog.load import LoadOptions, load
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.overlooked import overlooked
from normfold.serving.catalog.repository import Files, Repository, SentFolder, is_plain
from normfold.serving.catalog.trust import ANYTHING, Trust, TrustedFolder
from normfold.serving.errors import (
    ConfigError,
    InvalidRequest,
    LoadError,
    LoadRefused,
    NotFound,
    PollFailed,
    ServingError,
    StartError,
)
from normfold.serving.scheduling.inline import hop_seconds
from normfold.serving.wording import near, quoted

log = logging.getLogger(__name__)


class Catalog:
    """The models of a repository by name. Loading happens on a thread, everything else on the event loop."""

    def __init__(
        self,
        repository: Repository,
        options: LoadOptions,
        executor: Executor,
        names: Sequence[str] = (),
        trust: Trust = ANYTHING,
    ) -> None:
        """``names`` are the models to load at the start; empty: all. Raises StartError for an unknown name.

        ``trust``: what the files of a model need to be served.

        Until they are loaded, requests for them are refused as too early.
        """
        self._trust = trust
        self._repository, self._options, self._executor = repository, options, executor
        self._entries: dict[str, Entry] = {}
        self._lock = asyncio.Lock()
        self._listeners: list[Callable[[], None]] = []
        #: True as soon as loading was tried for every model.
        self.started = False
        #: False while other workers of the same server are not ready.
        self.others_ready = True
        found = repository.models()
        for name in names:
            if name not in found:
                there = f"; there are: {', '.join(map(quoted, found))}"
                raise StartError(f"there is no model {quoted(name)} to load{near(name, found) or there}")
        for name in names or found:
            self._entries[name] = Entry(wanted=True, loading=True)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever readiness may have changed: of the server, or of a model."""
        self._listeners.append(listener)

    def changed(self) -> None:
        """Call the listeners."""
        for listener in self._listeners:
            listener()

    @property
    def entries(self) -> dict[str, Entry]:
        """Every model that was ever loaded or tried, by name."""
        return self._entries

    def ready(self, strict: bool) -> bool:
        """Whether the server is ready: every worker has tried every model and, where ``strict``, all are in service."""
        return self.others_ready and self.loaded(strict)

    def loaded(self, strict: bool) -> bool:
        """Whether this worker has tried every model and, where ``strict``, has all in service that should be."""
        return self.started and (not strict or in_service(self._entries.values()))

    async def load_all(self) -> None:
        """Load the models of the start, unless a client was faster; a failure is kept as the reason of its model."""
        for name, why in overlooked(self._repository).items():
            log.warning("folder %s is not served: %s", quoted(name), why)
        for name, entry in list(self._entries.items()):
            if not entry.loading:
                continue
            try:
                await self.load(name)
            except StartError:
                raise
            except ServingError as error:
                log.error("model %s was not loaded: %s", quoted(name), error)
        self.started = True
        self.changed()

    async def load(self, name: str, override: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Load or reload a model. Old versions serve until the new ones are warm, and go on if the new ones fail.

        ``override`` is a configuration in JSON that replaces config.pbtxt. ``files`` replace the model's folder, and
        need an ``override``. Raises PollFailed when there is no such model, LoadRefused when loading fails.
        """
        async with self._lock:
            if not self._options.hop_seconds:
                self._options = replace(self._options, hop_seconds=await hop_seconds(self._executor))
            entry = self._entries.get(name)
            try:
                folder = TrustedFolder(self._folder(name, override, files or {}), self._trust)
                entry = self._entries.setdefault(name, Entry())
                was_known, entry.loading = entry.known, True
                if not was_known:
                    self.changed()
                await self._load(folder, override, entry)
            except LoadError as error:
                raise LoadRefused(f"failed to load {quoted(name)}: {error}") from error
            except (PollFailed, StartError) as error:
                if entry is not None and entry.wanted and not entry.versions:
                    entry.reason = str(error)
                raise
            finally:
                if entry is not None:
                    entry.loading = False
                self.changed()

    async def _load(self, folder: TrustedFolder, override: str | None, entry: Entry) -> None:
        """Load the versions of a model, and put them in service if none fails or if none answers yet.

        Raises PollFailed, LoadError or LoadRefused.
        """
        before = dict(entry.versions)
        answered = bool(entry.ready)
        try:
            written, numbers = self._plan(folder, override)
        except LoadError as error:
            if not answered:
                entry.reason = str(error)
            raise
        for number in numbers:
            if number not in before or before[number].state != READY:
                entry.versions[number] = Version(LOADING)
        try:
            loaded, failures = await self._load_versions(folder, written, numbers)
        except BaseException:
            entry.versions = before
            raise
        if failures and answered:
            entry.versions = after_refusal(before, loaded, failures)
            raise LoadRefused(_failed(folder.name, failures))
        entry.reason, entry.wanted = "", entry.wanted or bool(loaded)
        for number in set(entry.versions) - set(numbers):
            entry.versions[number] = Version(UNAVAILABLE, UNLOADED)
        entry.versions |= {number: Version(READY, folder.remark(number), model) for number, model in loaded.items()}
        entry.versions |= {number: Version(UNAVAILABLE, reason) for number, reason in failures.items()}
        if failures:
            raise LoadRefused(_failed(folder.name, failures))

    def _folder(self, name: str, override: str | None, files: Mapping[str, bytes]) -> Files:
        """The place that the model's files come from. Raises PollFailed."""
        failed = _unpolled(name)
        if files:
            if override is None:
                raise PollFailed(f"{failed}: files in a load request need the parameter 'config' beside them")
            for path in files:
                if not is_plain(path):
                    raise PollFailed(f"{failed}: {quoted(path)} is not a path inside a model's folder")
            return SentFolder(name, files)
        folder = self._repository.find(name)
        if folder is None:
            why = overlooked(self._repository).get(name)
            hint = f"there is no such folder{near(name, self._repository.models())}"
            raise PollFailed(f"{failed}: {why or hint}")
        return folder

    def _plan(self, folder: Files, override: str | None) -> tuple[mc.ModelConfig, list[int]]:
        """The configuration as its author wrote it, and the versions that it puts in service.

        Raises PollFailed or LoadError.
        """
        if override is None:
            written = config.parse(folder.config_text() or "")
        else:
            try:
                written = config.parse_json(override)
            except ConfigError as error:  # Triton answers INTERNAL to a configuration that it cannot read
                raise PollFailed(f"{_unpolled(folder.name)}: {error}") from error
        for note in config.check(written, folder.name):
            log.warning("model %s: %s", quoted(folder.name), note)
        numbers = config.versions_in_service(written, folder.versions())
        if not numbers:
            present = ", ".join(map(str, folder.versions())) or "none"
            raise LoadError(f"no version to serve: version folders are numbers such as 1, there are: {present}")
        return written, numbers

    async def _load_versions(
        self, folder: Files, written: mc.ModelConfig, numbers: list[int]
    ) -> tuple[dict[int, Model], dict[int, str]]:
        """The versions that loaded, and for each of the others the reason. Raises StartError."""
        loaded: dict[int, Model] = {}
        failures: dict[int, str] = {}
        for number in numbers:
            try:
                loaded[number] = await asyncio.to_thread(load, folder, written, number, self._options, self._executor)
                log.log(logging.INFO if self.started else logging.DEBUG, "loaded %s", loaded[number].describe())
            except StartError:  # the device is missing, so no model will load
                raise
            except ServingError as error:
                failures[number] = str(error)
            except Exception as error:
                log.exception("loading model %s version %d failed", quoted(folder.name), number)
                failures[number] = f"unexpected {type(error).__name__}; the log has the details"
        return loaded, failures

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests on their way are still answered. It is no error if the model is not loaded."""
        async with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                return
            entry.reason, entry.wanted, entry.loading = "", False, False
            entry.versions = {number: Version(UNAVAILABLE, UNLOADED) for number in entry.versions}
            self.changed()

    def find(self, name: str, version: str) -> Model:
        """The model that answers requests for ``name`` and ``version``; "" is the highest version that is ready.

        Raises InvalidRequest for a version that is no number, NotFound, or Unavailable with the reason.
        """
        number = parse_version(version)
        entry = self._entries.get(name)
        if entry is None or not entry.known:
            raise NotFound(f"Request for unknown model: {quoted(name)} is not found{near(name, self._entries)}")
        return answering(entry, name, number)

    def index(self, only_ready: bool) -> list[pb.RepositoryIndexResponse.ModelIndex]:
        """The state and reason of each version of every model in the repository; of a model never loaded, the name."""
        rows = []
        for name in sorted({*self._repository.models(), *self._entries}):
            entry = self._entries.get(name, Entry())
            for number, version in sorted(entry.versions.items()):
                if version.state == READY or not only_ready:
                    rows.append((name, str(number), version.state, version.reason))
            if not entry.versions and not only_ready:
                rows.append((name, "", entry.state, entry.reason))
        index = pb.RepositoryIndexResponse.ModelIndex
        return [index(name=n, version=v, state=s, reason=r) for n, v, s, r in rows]


def parse_version(text: str) -> int | None:
    """The version that a request names, None for "". As in Triton, text behind the number is ignored.

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
    """The beginning of Triton's sentence about a model whose files or configuration could not be read."""
    return f"failed to load {quoted(name)}, failed to poll from model repository"


def _failed(name: str, failures: dict[int, str]) -> str:
    reasons = "; ".join(f"version {n} is at UNAVAILABLE state: {reason}" for n, reason in sorted(failures.items()))
    return f"load failed for model {quoted(name)}: {reasons}"
