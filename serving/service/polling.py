"""Polling: a server looks at its repository, loads what is new or has changed, and unloads what is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from normfold.protos import grpc_service as pb
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.changes import Changes
from normfold.serving.catalog.repository import Repository
from normfold.serving.errors import LoadError, LoadHindered, ServingError, StartError
from normfold.serving.process.file_thread import FileThread
from normfold.serving.process.said_once import SaidOnce
from normfold.serving.rpc.methods import Method
from normfold.serving.service.pauses import Pauses
from normfold.serving.wording import quoted

log = logging.getLogger(__name__)

#: Not on the wire: the name by which workers tell each other's changes of the repository from those of clients.
SERVICE = "normfold.Repository"

#: When somebody asks to look now: the time between the two looks that show whether a change is whole, in seconds.
SETTLED_SECONDS = 1.0


class Polling:
    """Looks every so often, and when it is asked to. Loads go to all workers, as if a client had asked for them.

    Of several workers one looks. The others note what it has them load, so that each can go on where it ends.
    """

    def __init__(
        self, repository: Repository, catalog: Catalog, seconds: float, refresh: Callable[[], None] | None = None
    ) -> None:
        """``seconds``: the time between looks; 0: only when asked.

        ``refresh`` brings the image of a repository on object storage up to date before each look; None: the
        repository is here.
        """
        self._refresh = refresh
        self._changes, self._seconds = Changes(repository), seconds
        #: The methods by which a change of the repository reaches this worker; no frontend has them.
        self.methods = [
            Method(f"/{SERVICE}/RepositoryModelLoad", pb.RepositoryModelLoadRequest, unary=self._refresh_model),
            Method(f"/{SERVICE}/RepositoryModelUnload", pb.RepositoryModelUnloadRequest, unary=self._unload_model),
        ]
        self._load, self._unload = self.methods
        self._repository, self._catalog = repository, catalog
        self._files = FileThread("normfold-poll")
        self._now = asyncio.Event()
        #: The functions to call after the next look that somebody asked for.
        self._asked: list[Callable[[], None]] = []
        self._said = SaidOnce(log)
        #: Models that have changed and are not whole yet, and what the log last said of each.
        self._waiting: dict[str, str] = {}
        #: The models whose loads are tried again although their files have not changed.
        self._pauses = Pauses()

    def share(self, methods: Sequence[Method]) -> None:
        """Have changes reach every worker: ``methods`` are those of this object, shared by all workers."""
        self._load, self._unload = methods

    async def _refresh_model(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        await self._files.run(self._changes.note, request.model_name)
        await self._catalog.refresh(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def _unload_model(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        await self._files.run(self._changes.note_gone, request.model_name)
        self._catalog.hindered.names.discard(request.model_name)
        await self._catalog.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def begin(self) -> None:
        """Count the repository's files of now as loaded. Call it before anything is loaded."""
        await self._files.run(self._changes.begin)

    async def catch_up(self) -> None:
        """In a worker that was started again: what has changed while no worker looked counts as a change, too."""
        self._changes.forget(await self._files.run(self._catalog.following.behind, self._repository))

    def try_again(self, names: Iterable[str]) -> None:
        """Count these models as changed, because they could not be loaded. Call it before ``run``."""
        self._changes.forget(names)

    def look_now(self, looked: Callable[[], None] = lambda: None) -> None:
        """Look as soon as possible, and call ``looked`` when what has changed was loaded."""
        self._asked.append(looked)
        self._now.set()

    async def run(self, unlike: Sequence[str] = ()) -> None:
        """Poll until this is cancelled. First have the models loaded that are ``unlike`` in different workers."""
        for name in filter(self._catalog.follows, unlike):
            await self._ask(self._load, pb.RepositoryModelLoadRequest(model_name=name), f"load {quoted(name)}")
        while True:
            asked, found = await self._wait(), False
            if asked:  # what changed just now shows at the second look whether it is whole
                found = await self._look(now=True)
                await asyncio.sleep(SETTLED_SECONDS)
            found = await self._look() or found
            if asked and not found:
                log.info("SIGHUP: looked at the repository: nothing has changed, or what has is not whole yet")
            for looked in asked:
                looked()

    async def _wait(self) -> list[Callable[[], None]]:
        """Wait until it is time to look; what to call then, if somebody asked for it."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._now.wait(), self._seconds or None)
        asked, self._asked = self._asked, []
        self._now.clear()
        return asked

    async def _look(self, now: bool = False) -> bool:
        """Look once, and have what has changed loaded. Return whether there was anything to do or to report.

        What could not be loaded for a reason that may pass is tried again: ``now``, or after a pause if this polls.
        """
        try:
            if self._refresh is not None:
                await self._files.run(self._refresh)
            changed, gone = await self._files.run(self._changes.look)
        except LoadError as error:
            self._said.say(f"{error}; the models that answer go on answering")
            return True
        except Exception as error:  # such as a system without threads: the next look may succeed
            self._said.say(
                f"a look at the repository failed: {type(error).__name__}: {error}; the next one follows", error
            )
            return True
        if self._said.over():
            log.info("the repository can be read again")
        self._say_what_waits()
        changed, gone = [*filter(self._catalog.follows, changed)], [*filter(self._catalog.follows, gone)]
        for name in filter(self._catalog.follows, changed):  # a client may leave one out while others load
            self._pauses.forget(name)
            await self._ask(self._load, pb.RepositoryModelLoadRequest(model_name=name), f"load {quoted(name)}")
        for name in filter(self._catalog.follows, gone):
            self._pauses.forget(name)
            await self._ask(self._unload, pb.RepositoryModelUnloadRequest(model_name=name), f"unload {quoted(name)}")
        again = await self._try_again(now) if now or self._seconds else []
        return bool(changed or gone or again)

    async def _try_again(self, now: bool) -> list[str]:
        """Have those loaded again that failed for a reason that may pass; their names.

        Those whose files are being written are loaded when these are whole, and what a client has sent since stays.
        """
        hindered = self._catalog.hindered
        names = (hindered.names | self._pauses.names) - hindered.sent - self._changes.unsettled
        due = self._pauses.due([*filter(self._catalog.follows, names)], now)
        for name in filter(self._catalog.follows, due):
            await self._ask(self._load, pb.RepositoryModelLoadRequest(model_name=name), f"load {quoted(name)}", True)
        return due

    def _say_what_waits(self) -> None:
        """Say once of each model that has changed why it is not loaded yet: its copy may have broken off."""
        incomplete = self._changes.incomplete
        waiting = {name: missing for name, missing in incomplete.items() if self._catalog.follows(name)}
        for name, missing in waiting.items():
            if self._waiting.get(name) != missing:
                log.warning("the repository has changed: %s is loaded once it is whole: %s", quoted(name), missing)
        self._waiting = waiting

    async def _ask(
        self,
        method: Method,
        request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest,
        what: str,
        again: bool = False,
    ) -> None:
        """Have all workers do it; ``again``: it has failed before, and the files are the same."""
        name, begun = request.model_name, time.monotonic()
        why = "it failed before for a reason that may have passed" if again else "the repository has changed"
        log.log(logging.DEBUG if again else logging.INFO, "%s: %s", why, what)
        try:
            answered = method.answer(request.SerializeToString())
            if not isinstance(answered, bytes):
                await answered
        except (LoadHindered, StartError) as error:
            if self._pauses.failed(name, time.monotonic() - begun, str(error)):
                later = "; it is tried again, with growing pauses" if self._seconds else ""
                log.error("%s: %s: %s%s", why, what, error, later)
        except ServingError as error:  # the versions that answer go on answering
            self._pauses.forget(name)
            log.error("%s: %s: %s", why, what, error)
        except Exception:  # the other models that have changed are still to come
            self._pauses.forget(name)
            log.exception("%s: %s failed", why, what)
        else:
            self._pauses.forget(name)
            if again:
                log.info("%s: %s: now it could be loaded", why, what)
