"""The models in service: which versions of them are loaded, and why others are not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from weakref import WeakValueDictionary

from normfold.protos import grpc_service as pb
from normfold.serving.catalog.entries import answering, go_on, in_service, index, load_failed, stands_in
from normfold.serving.catalog.entry import Entry, Version
from normfold.serving.catalog.following import Following, Others
from normfold.serving.catalog.hindered import HinderedModels, refusal
from normfold.serving.catalog.lazily import Lazily, LazyLimits
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.loader import Loader, load_each
from normfold.serving.catalog.looks import Looks
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.repository import Repository
from normfold.serving.catalog.sources import Sources
from normfold.serving.catalog.stage import Stage
from normfold.serving.catalog.trial import Trials
from normfold.serving.catalog.trust import ANYTHING, Trust, TrustedFolder
from normfold.serving.catalog.version_policy import stand_ins
from normfold.serving.catalog.version_text import parse_version
from normfold.serving.errors import LoadError, NotFound, PollFailed, StartError
from normfold.serving.wording import near, quoted


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
        lazy: LazyLimits | None = None,
        again: bool = False,
        private: bool = False,
    ) -> None:
        """``names`` are the models to load at the start; empty: all. Raises StartError for an unknown name.

        ``again``: the server has begun before, and an unknown name is one that is gone. Until they are loaded, requests
        for them are refused as too early. ``trials`` try each version before it is loaded here. ``trust``: what the
        files of a model need to be served. With ``lazy`` limits models are loaded by requests, not at the start.
        ``private``: a message about an unknown model names no other model.
        """
        self._looks, self._trust, self._names = Looks(repository), trust, names
        self._loader = Loader(options, executor, trials)
        #: Every model that was ever loaded or tried, by name.
        self.entries: dict[str, Entry] = {}
        #: The models that a message about an unknown one may name.
        self.nameable: Mapping[str, Entry] = {} if private else self.entries
        #: Held while a model loads or is unloaded; only as long, because clients name models that are nowhere.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.following = Following()
        self._sources = Sources(repository, self.following, private)
        self._lazily = None if lazy is None else Lazily(lazy, self.entries, self._load_asked, self._loader.pause)
        self._listeners: list[Callable[[], None]] = []
        self.hindered = HinderedModels()
        #: True as soon as loading was tried for every model.
        self.started = False
        self.others = Others()
        #: True once the server stops: nothing is ready any more, although requests are answered for a while.
        self.leaving = False
        for name in self._sources.names(names, again):
            self.entries[name] = Entry(Stage.AWAITED)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever readiness may have changed: of the server, or of a model."""
        self._listeners.append(listener)

    def on_unload(self, listener: Callable[[Model], None]) -> None:
        """Call ``listener`` with each version that is unloaded to make room, which changes no readiness."""
        if self._lazily is not None:
            self._lazily.listeners.append(listener)

    def changed(self) -> None:
        """Call the listeners."""
        for listener in self._listeners:
            listener()

    def ready(self, strict: bool) -> bool:
        """Whether the server is ready: every worker has tried every model and, where ``strict``, all are in service."""
        return self.others.ready and not self.leaving and self.loaded(strict)

    def model_ready(self, name: str, number: int | None = None) -> bool:
        """Whether clients may come for a model, or for one version of it: to any worker, also if it must load it."""
        entry = self.entries.get(name)
        here = entry is not None and not self.leaving and entry.answers(number)
        return here and self.others.answer(name, number)

    def hear(self, failing: Mapping[str, tuple[int, ...]], loaded: Iterable[str]) -> None:
        """Note the versions that other workers cannot load, and the models that one has loaded after it could not."""
        self.others.failing = failing
        if self._lazily is not None:
            self._lazily.try_again(loaded)
        self.changed()

    def loaded(self, strict: bool) -> bool:
        """Whether this worker has tried every model and, where ``strict``, has all in service that should be."""
        return self.started and (not strict or in_service(self.entries.values(), self.following.followed))

    async def load_all(self) -> None:
        """Load the models of the start, unless a client was faster; a failure is kept as the reason of its model.

        Lazy ones are only looked at. Where there are other workers, only what they have in service is loaded.
        """
        await self._loader.run(self._sources.warn_of_overlooked)
        self.following.skip(self.entries)
        names = [*filter(self._is_awaited, self.entries)]
        if self._lazily is not None:
            found = await self._loader.run(self._sources.versions, names)
            self._lazily.lay_down({name: each for name, each in found.items() if self._is_awaited(name)})
        else:
            await load_each(self._load_at_start, names)
            self._loader.rest()
        self.started = True
        self.changed()

    def _is_awaited(self, name: str) -> bool:
        """Whether the start is still to load the model."""
        entry = self.entries.get(name)
        return entry is not None and entry.stage is Stage.AWAITED

    async def _load_at_start(self, name: str) -> None:
        """Load a model, unless a client has loaded or unloaded it meanwhile. Raises as ``load``."""
        async with self._lock(name):
            if self._is_awaited(name):
                with self.hindered.noted(name):
                    await self._load_now(name, None, {})

    async def load(self, name: str, override: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Load or reload a model. Old versions serve until the new ones are warm, and go on if the new ones fail.

        ``override`` is a configuration in JSON that replaces config.pbtxt. ``files`` replace the model's folder, and
        need an ``override``. Raises PollFailed when there is no such model, LoadRefused when loading fails.
        """
        async with self._lock(name):
            with self.hindered.noted(name, sent=override is not None or bool(files)):
                await self._load_now(name, override, files or {})

    async def refresh(self, name: str) -> None:
        """Load a model whose files have changed; of a lazy one that is not loaded, only look what there is.

        A version that serves is loaded only if its own files have changed, or the configuration. Raises as ``load``.
        """
        async with self._lock(name):
            with self.hindered.noted(name):
                if self._lazily is None or ((entry := self.entries.get(name)) is not None and entry.ready):
                    await self._load_now(name, None, {}, again=True)
                else:
                    self._lazily.lay_down(await self._loader.run(self._sources.versions, [name]))
                    self.changed()

    def follows(self, name: str) -> bool:
        """Whether a change of the files of ``name`` puts it in service: unless a client, or the start, left it out."""
        entry = self.entries.get(name)
        return (not self._names or name in self._names) if entry is None else entry.stage is not Stage.LEFT_OUT

    async def _load_asked(self, name: str) -> None:
        """Load a model because a request asks for it, if it is still to be loaded. Raises as ``load``."""
        async with self._lock(name):
            if (entry := self.entries.get(name)) is not None and entry.asleep:
                with self.hindered.noted(name, asked=entry):
                    await self._load_now(name, None, {}, asked=True)

    def wake(self, name: str) -> Awaitable[None] | None:
        """The load that a request for the lazy model ``name`` must await before ``find``; None: it need not wait."""
        return None if self._lazily is None else self._lazily.wake(name)

    async def awake(self, name: str, version: str) -> Model:
        """``find``, after a load if the model is lazy and not loaded. Raises as ``find``, and Overloaded."""
        if (waking := self.wake(name)) is not None:
            await waking
        return self.find(name, version)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _load_now(
        self, name: str, override: str | None, files: Mapping[str, bytes], asked: bool = False, again: bool = False
    ) -> None:
        """``load``, with the lock held. ``asked``: a request asks for it, and gets the versions that were known before.

        ``again``: a version in service stays as it is if its files and configuration are the same.
        """
        entry = self.entries.get(name)
        if entry is not None and override is None and not files and self.following.has(name, entry):
            return
        before = None if entry is None else entry.outcome
        spared, was_known = entry is not None and self._spares(entry, asked), entry is not None and entry.known
        if entry is not None:
            entry.loading = {}  # from now on it makes no room
        try:
            found = await self._loader.run(self._sources.files, name, override, files)
            folder = TrustedFolder(found, self._trust, quiet=asked)
            # The server is not ready before its first model.
            entry = self.entries.setdefault(name, Entry(Stage.OUT if self.entries else Stage.EAGER, loading={}))
            if not was_known:
                self.changed()
            await self._load(folder, override, entry, asked, again)
        except (LoadError, StartError) as error:
            if entry is not None and not spared and not entry.ready:
                entry.refuse(str(error))
            if isinstance(error, StartError):
                raise
            raise refusal([error])(f"failed to load {quoted(name)}: {error}{go_on(entry)}") from error
        except PollFailed as error:
            if entry is not None and entry.wanted and not spared and (asked or not entry.versions):
                entry.refuse(str(error))
            raise PollFailed(f"{error}{go_on(entry)}") from error
        finally:
            if entry is not None:
                entry.loading = None
                if not entry.known:  # as after a load that was given up
                    self.entries.pop(name, None)
                if self._lazily is not None and (entry.ready or not spared):
                    self._lazily.loaded(name, entry)
            if not asked or entry is None or entry.outcome != before:
                self.changed()

    def _spares(self, entry: Entry, asked: bool) -> bool:
        """Whether a load that fails changes nothing: a request, or the start of lazy models, is still to load it."""
        return not asked and (entry.rests or (self._lazily is not None and entry.stage is Stage.AWAITED))

    async def _load(self, folder: TrustedFolder, override: str | None, entry: Entry, asked: bool, again: bool) -> None:
        """Load the versions of a model, or a lower one where none of them loads, and put them in service.

        If one fails while others answer, these go on instead. Raises PollFailed, LoadError or LoadRefused.
        """
        answered = bool(entry.ready) or self._spares(entry, asked)
        only = self.others.without_refused(folder.name, entry) if asked else None
        written, numbers, there = await self._loader.run(self._sources.plan, folder, override, only)
        text = written.SerializeToString(deterministic=True)  # the order of maps differs between processes
        kept = {model.version: model for model in entry.ready} if again and text == entry.written else {}
        entry.loading = dict.fromkeys(numbers, "")
        others = () if answered else stand_ins(written, there, numbers)
        quiet = asked or not self.started
        loaded, errors = await self._loader.load_versions(folder, written, entry.loading, quiet, kept, others, asked)
        failures = {number: str(error) for number, error in errors.items()}
        if failures and answered:
            entry.note_failures(loaded, failures)
            raise refusal(errors.values())(load_failed(folder.name, failures) + go_on(entry))
        entry.written = text
        ready = {number: Version(folder.remark(number), model) for number, model in loaded.items()}
        lazy = self._lazily is not None and override is None  # what a client has sent exists nowhere else
        entry.put_in_service(ready, failures, None if asked else there, lazy)
        if failures:
            raise refusal(errors.values())(load_failed(folder.name, failures) + stands_in(loaded, numbers))

    def leave(self) -> None:
        """From now on nothing is ready, and nothing is loaded: the trials of loads under way end."""
        self.leaving = True
        self._loader.close()
        self.changed()

    def stop(self) -> None:
        """End the runs under way: the server must end, whether they are done or not."""
        for entry in self.entries.values():
            for model in entry.ready:
                model.scheduler.stop()

    async def unload(self, name: str, leave_out: bool = False) -> None:
        """Stop serving a model; requests on their way are still answered. It is no error if the model is not loaded.

        With ``leave_out`` no change of its files puts it back.
        """
        async with self._lock(name):
            if (entry := self.entries.get(name)) is None:
                return
            entry.unload(leave_out)
            if not leave_out and not entry.answered:  # no client has seen it ready: forget it
                del self.entries[name]
            if self._lazily is not None:
                self._lazily.gone(name)
            self.changed()

    def find(self, name: str, version: str) -> Model:
        """The model that answers requests for ``name`` and ``version``; "" is the highest version that is ready.

        Raises InvalidRequest for a version that is no number, NotFound, or Unavailable with the reason.
        """
        number = parse_version(version)
        if (entry := self.entries.get(name)) is None or not entry.known:
            raise NotFound(f"Request for unknown model: {quoted(name)} is not found{near(name, self.nameable)}")
        return answering(entry, name, number)

    async def look(self) -> list[str]:
        """The names of the models that the repository has now, read on another thread."""
        return await self._looks.names()

    def index(self, only_ready: bool, present: Iterable[str] = ()) -> list[pb.RepositoryIndexResponse.ModelIndex]:
        """The state and reason of each version of every model; of a model of ``present`` never loaded, the name."""
        return index(self.entries, {*present, *self.entries}, only_ready)
