"""The models in service: which versions of them are loaded, and why others are not."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor

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
    rows,
)
from normfold.serving.catalog.following import Following
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.loader import Loader
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.overlooked import overlooked
from normfold.serving.catalog.repository import Files, Repository, SentFolder, is_plain
from normfold.serving.catalog.trial import Trials
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
from normfold.serving.wording import near, quoted

log = logging.getLogger(__name__)


class Catalog:
    """The models of a repository by name. Loading happens on threads, everything else on the event loop."""

    def __init__(
        self,
        repository: Repository,
        options: LoadOptions,
        executor: Executor,
        names: Sequence[str] = (),
        trials: Trials | None = None,
        trust: Trust = ANYTHING,
    ) -> None:
        """``names`` are the models to load at the start; empty: all. Raises StartError for an unknown name.

        Until they are loaded, requests for them are refused as too early. ``trials`` try each version before it is
        loaded here. ``trust``: what the files of a model need to be served.
        """
        self._repository, self._trust = repository, trust
        self._loader = Loader(options, executor, trials)
        #: Every model that was ever loaded or tried, by name.
        self.entries: dict[str, Entry] = {}
        #: Held while a model loads or is unloaded; loads of several models go on at the same time.
        self._locks: dict[str, asyncio.Lock] = {}
        #: What other workers serve, while this one starts.
        self.following = Following()
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
            self.entries[name] = Entry(wanted=True, loading=True)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever readiness may have changed: of the server, or of a model."""
        self._listeners.append(listener)

    def changed(self) -> None:
        """Call the listeners."""
        for listener in self._listeners:
            listener()

    def ready(self, strict: bool) -> bool:
        """Whether the server is ready: every worker has tried every model and, where ``strict``, all are in service."""
        return self.others_ready and self.loaded(strict)

    def loaded(self, strict: bool) -> bool:
        """Whether this worker has tried every model and, where ``strict``, has all in service that should be."""
        return self.started and (not strict or in_service(self.entries.values()))

    async def load_all(self) -> None:
        """Load the models of the start, unless a client was faster; a failure is kept as the reason of its model."""
        for name, why in (await self._loader.run(overlooked, self._repository)).items():
            log.warning("folder %s is not served: %s", quoted(name), why)
        loads = [asyncio.create_task(self._load_first(name)) for name, entry in self.entries.items() if entry.loading]
        try:
            await asyncio.gather(*loads)
        finally:
            for each in loads:
                each.cancel()
        self.started = True
        self._loader.rest()
        self.changed()

    async def _load_first(self, name: str) -> None:
        """Load a model of the start. Raises StartError."""
        try:
            await self.load(name)
        except StartError:
            raise
        except ServingError as error:
            log.error("model %s was not loaded: %s", quoted(name), error)

    async def load(self, name: str, override: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Load or reload a model. Old versions serve until the new ones are warm, and go on if the new ones fail.

        ``override`` is a configuration in JSON that replaces config.pbtxt. ``files`` replace the model's folder, and
        need an ``override``. Raises PollFailed when there is no such model, LoadRefused when loading fails.
        """
        async with self._locks.setdefault(name, asyncio.Lock()):
            entry = self.entries.get(name)
            if entry is not None and override is None and not files and self.following.has(name, entry):
                return
            try:
                found = await self._loader.run(self._folder, name, override, files or {})
                folder = TrustedFolder(found, self._trust)
                entry = self.entries.setdefault(name, Entry())
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
            written, numbers = await self._loader.run(self._plan, folder, override)
        except LoadError as error:
            if not answered:
                entry.reason = str(error)
            raise
        for number in numbers:
            if number not in before or before[number].state != READY:
                entry.versions[number] = Version(LOADING)
        try:
            loaded, failures = await self._loader.load_versions(folder, written, numbers, quiet=not self.started)
        except BaseException:
            entry.versions = before
            raise
        if failures and answered:
            entry.versions = after_refusal(before, loaded, failures)
            raise LoadRefused(_failed(folder.name, failures))
        entry.reason, entry.wanted, entry.written = "", entry.wanted or bool(loaded), written.SerializeToString()
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
        if (plan := self.following.plan(folder.name)) is not None:
            return plan
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
            there = ", ".join(map(str, folder.versions()))
            numbered = "the version_policy chooses none of the versions" if there else "folders are numbers such as 1"
            raise LoadError(f"no version to serve: {numbered}, there are: {there or 'none'}")
        return written, numbers

    def stop_loading(self) -> None:
        """End the trials of loads under way, and try no more."""
        self._loader.close()

    def stop(self) -> None:
        """End the runs under way: the server must end, whether they are done or not."""
        for entry in self.entries.values():
            for model in entry.ready:
                model.scheduler.stop()

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests on their way are still answered. It is no error if the model is not loaded."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            entry = self.entries.get(name)
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
        entry = self.entries.get(name)
        if entry is None or not entry.known:
            raise NotFound(f"Request for unknown model: {quoted(name)} is not found{near(name, self.entries)}")
        return answering(entry, name, number)

    async def look(self) -> list[str]:
        """The names of the models that the repository has now, read on another thread."""
        return await asyncio.to_thread(lambda: list(self._repository.models()))

    def index(self, only_ready: bool, present: Iterable[str] = ()) -> list[pb.RepositoryIndexResponse.ModelIndex]:
        """The state and reason of each version of every model; of a model of ``present`` never loaded, the name."""
        names = sorted({*present, *self.entries})
        found = [row for name in names for row in rows(name, self.entries.get(name, Entry()), only_ready)]
        index = pb.RepositoryIndexResponse.ModelIndex
        return [index(name=n, version=v, state=s, reason=r) for n, v, s, r in found]


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
