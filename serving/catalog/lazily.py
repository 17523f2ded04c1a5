"""Models that are loaded by requests: the first request for one loads it, and little used ones are unloaded for others.

A request waits for the load of its model together with all others for the same model. Their number and their time are
bounded, and one whose caller leaves waits no longer. A load goes on when all have left, so that the next request finds
the model; a load that has not begun by then is dropped.

The budget counts the memory of models, not that of runs: what the C library has handed out during a load, or an
estimate by the size of the files. When it is exceeded, the idle models that were not used for longest are unloaded, and
those that are busy once they are idle.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from normfold.serving.catalog.entry import Entry, VersionsFound
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.stage import Stage
from normfold.serving.errors import Overloaded, ServingError, Unavailable
from normfold.serving.rpc.traffic import EXITING
from normfold.serving.wording import quoted

log = logging.getLogger(__name__)

#: The most requests that wait for the load of one model.
MOST_WAITING = 128

#: The most loads at the same time. One thread loads; while it does, the files of the next ones are read and tried.
LOADS = 4

#: A model that failed to load is tried again by a request that comes this much later, in seconds.
RETRY_SECONDS = 10.0

#: The longest wait of a request where the time of a load has no limit, in seconds.
WAIT_SECONDS = 120.0

#: The process that tries loads (70 MB, 0.6 s to start) is ended after this time without a load, in seconds.
PAUSE_SECONDS = 30.0

#: While busy models exceed the budget, the time between two looks whether they are idle, in seconds.
LOOK_SECONDS = 1.0

#: When the budget is exceeded, this part of it is freed, so that not every load has to look for what to unload.
SLACK = 1 / 20


@dataclass(frozen=True)
class LazyLimits:
    """The limits of lazy models."""

    #: Memory of all models together, in bytes; 0: no limit.
    budget_bytes: int = 0
    #: The longest time that a request waits for its model, in seconds.
    wait_seconds: float = WAIT_SECONDS


class Lazily:
    """Loads and unloads the models of a catalog as requests need them; used on the event loop only."""

    def __init__(
        self,
        limits: LazyLimits,
        entries: dict[str, Entry],
        load: Callable[[str], Awaitable[None]],
        pause: Callable[[], None],
    ) -> None:
        """``load`` loads a model by its name; ``pause`` is called when there was no load for a while."""
        self._limits, self._entries, self._load, self._pause = limits, entries, load, pause
        self._resting: asyncio.TimerHandle | None = None
        #: Called with each version that is unloaded to make room.
        self.listeners: list[Callable[[Model], None]] = []
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, int] = {}
        self._turns = asyncio.Semaphore(LOADS)
        #: The bytes of each model that is loaded.
        self._bytes: dict[str, int] = {}
        self._total = 0
        #: The next look whether busy models have become idle; None: there are none, or all fit into the budget.
        self._next_look: asyncio.TimerHandle | None = None
        #: When a model that failed may be tried again, by time.monotonic.
        self._retry: dict[str, float] = {}

    def lay_down(self, versions: Mapping[str, VersionsFound]) -> None:
        """Have the next request load each of these models, which have these versions."""
        for name, found in versions.items():
            self._entries.setdefault(name, Entry()).lay_down(found)
            self.gone(name)

    def try_again(self, names: Iterable[str]) -> None:
        """Have the next request load each of these models whose last load failed here: another worker could load it."""
        for name in names:
            entry = self._entries.get(name)
            if entry is not None and entry.stage is Stage.FAILED and entry.loading is None:
                self.lay_down({name: VersionsFound(entry.present, entry.chosen)})

    def wake(self, name: str) -> Awaitable[None] | None:
        """The load that a request for ``name`` must await before its model is looked for; None: it need not wait.

        Awaiting it raises Overloaded where too many wait already, Unavailable where the load takes too long or the
        server ends. A load that fails raises nothing: the model then has its reason.
        """
        entry = self._entries.get(name)
        if entry is None or not entry.asleep or self._retry.get(name, 0.0) > time.monotonic():
            return None
        return self._wait(name)

    async def _wait(self, name: str) -> None:
        waiting = self._waiting.get(name, 0)
        if waiting >= MOST_WAITING:
            raise Overloaded(f"too many requests wait for model {quoted(name)} to load, try again later", 1.0)
        task = self._waking.get(name)
        if task is None:
            task = self._waking[name] = asyncio.get_running_loop().create_task(self._wake(name))
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # all may have left
        self._waiting[name] = waiting + 1
        try:
            async with asyncio.timeout(self._limits.wait_seconds):
                await asyncio.shield(task)
        except TimeoutError:
            raise Unavailable(
                f"Request for unknown model: {quoted(name)} is not at ready state: it has been loading for longer than "
                f"{self._limits.wait_seconds:g} s"
            ) from None
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name]

    async def _wake(self, name: str) -> None:
        if self._resting is not None:
            self._resting.cancel()
        try:
            async with self._turns:
                if name in self._waiting:
                    await self._load(name)
        except (Unavailable, asyncio.CancelledError):
            raise Unavailable(EXITING) from None
        except ServingError as error:
            log.error("%s", error)
        finally:
            del self._waking[name]
            if not self._waking:
                self._resting = asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._pause)

    def loaded(self, name: str, entry: Entry) -> None:
        """Take note of what a load of ``name`` has left in ``entry``: its versions, or none of them."""
        self.gone(name)
        if entry.asleep:
            entry.refuse(entry.reason)
            self._retry[name] = time.monotonic() + RETRY_SECONDS
        if entry.ready:
            self._bytes[name] = sum(model.memory_bytes for model in entry.ready)
            self._total += self._bytes[name]
            self._make_room(name)

    def gone(self, name: str) -> None:
        """Take note that ``name`` is not loaded."""
        self._retry.pop(name, None)
        self._total -= self._bytes.pop(name, 0)

    def _make_room(self, newest: str) -> None:
        """Unload idle models until the others fit into the budget, busy ones once they are idle; ``newest`` stays."""
        budget, looked_before = self._limits.budget_bytes, self._next_look is not None
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        if not budget or self._total <= budget:
            return
        others = [name for name in self._bytes if name != newest and self._entries[name].lazy]
        # The requests for those in _waiting have not had their turn.
        idle = [name for name in others if name not in self._waiting and self._entries[name].loading is None]
        idle = [name for name in idle if all(model.idle for model in self._entries[name].ready)]
        idle.sort(key=lambda name: max(model.used_ns for model in self._entries[name].ready))
        gone: list[Model] = []
        for name in idle:
            if self._total <= budget * (1 - SLACK):
                break
            gone += self._unload(name)
        loop = asyncio.get_running_loop()
        if self._total > budget:
            if not looked_before:
                log.warning("the models need %d MiB, more than the memory budget: they are in use", self._total >> 20)
            if len(others) > len(idle):
                self._next_look = loop.call_later(LOOK_SECONDS, self._make_room, newest)
        if gone:
            log.debug("unloaded %d models to make room for %s", len(gone), quoted(newest))
            loop.run_in_executor(None, gone.clear)  # a session takes a millisecond to end: not on the event loop

    def _unload(self, name: str) -> list[Model]:
        entry = self._entries[name]
        models = entry.ready
        entry.make_room()
        for model in models:
            for listener in self.listeners:
                listener(model)
        self.gone(name)
        return models
