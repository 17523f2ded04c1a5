"""The threads on which models load: each version is tried in another process first, then loaded here."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from types import MappingProxyType
from typing import TypeVar

from normfold.protos import model_config as mc
from normfold.serving.catalog.load import LoadOptions, load
from normfold.serving.catalog.load_files import contents, digest, needed
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.repository import Files
from normfold.serving.catalog.trial import Trials
from normfold.serving.errors import Hindered, LoadError, ServingError, StartError, Unavailable
from normfold.serving.rpc.traffic import EXITING
from normfold.serving.wording import quoted

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Loads at the same time; most of them wait for a trial.
THREADS = 64


class Loader:
    """Loads versions of models; used on the event loop."""

    def __init__(self, options: LoadOptions, executor: Executor, trials: Trials | None) -> None:
        """``executor`` runs the models that were loaded; without ``trials`` everything happens in this process."""
        self._options, self._executor, self._trials = options, executor, trials
        self._threads = ThreadPoolExecutor(THREADS, "normfold-load")
        self._alone = threading.Lock()
        self._closed = False

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """What ``function`` returns, called on a thread: nothing of a repository is read on the event loop.

        One that is cancelled first waits for the thread, which cannot be interrupted. So the lock of the model is held
        for as long, and a client that leaves and asks again does not take one thread after the other.

        Raises what ``function`` raises, and Unavailable after ``close``.
        """
        if self._closed:
            raise Unavailable(EXITING)
        job = self._threads.submit(function, *arguments)
        done = asyncio.wrap_future(job)
        done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # the caller may have left
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError:
            if not job.cancel() and not self._closed:
                await asyncio.wait([done])
            raise
        try:
            return done.result()
        finally:  # an error's traceback refers to this frame, which would keep the model file in memory
            del job, done

    async def load_versions(
        self,
        folder: Files,
        written: mc.ModelConfig,
        tries: dict[int, str],
        quiet: bool,
        kept: Mapping[int, Model] = MappingProxyType({}),
        stand_ins: Sequence[int] = (),
        asked: bool = False,
    ) -> tuple[dict[int, Model], dict[int, LoadError]]:
        """The versions that loaded and are warm, and for each of the others the reason; ``quiet`` logs failures only.

        ``tries`` has the versions to load. It gets the stand-ins that are tried, too, and why each version has failed.
        ``kept`` serve with the same configuration already; they are loaded again only if their files have changed.
        Where none of them loads, the first of the ``stand_ins`` that does is loaded. A load that a request has
        ``asked`` for takes none where a reason may pass: then a later request tries again, as long as nothing answers.

        Raises StartError, and Unavailable after ``close``.
        """
        loaded: dict[int, Model] = {}
        failures: dict[int, LoadError] = {}
        for number in (*tries, *stand_ins):
            may_pass = asked and any(isinstance(error, Hindered) for error in failures.values())
            if number in stand_ins and (loaded or may_pass):
                break
            tries[number] = ""
            try:
                loaded[number] = await self.run(self._load, folder, written, number, kept.get(number))
                silent = quiet or loaded[number] is kept.get(number)
                log.log(logging.DEBUG if silent else logging.INFO, "loaded %s", loaded[number].describe())
            except (StartError, Unavailable):  # the device is missing, so no model will load; or the server ends
                raise
            except LoadError as error:
                failures[number] = error.with_traceback(None)  # the traceback would keep the model file in memory
            except ServingError as error:
                failures[number] = LoadError(str(error))
            except MemoryError:
                failures[number] = Hindered("there is not enough memory to load it")
            except Exception as error:
                log.exception("loading model %s version %d failed", quoted(folder.name), number)
                kind = Hindered if isinstance(error, OSError | ImportError) else LoadError  # such as a missing library
                failures[number] = kind(f"unexpected {type(error).__name__}; the log has the details")
            if number in failures:
                tries[number] = str(failures[number])
        return loaded, failures

    def _load(self, folder: Files, written: mc.ModelConfig, version: int, kept: Model | None = None) -> Model:
        if kept is not None:
            folder = needed(folder, written, version)
            if contents(folder) == kept.contents:
                return kept
        if self._trials is not None:
            folder = needed(folder, written, version)
            self._trials.check(folder, written, version, self._options)
        with self._alone:  # so that the run times of one model are not measured while another one loads
            if self._closed:
                raise Unavailable(EXITING)
            files = needed(folder, written, version)
            model = load(files, written, version, self._options, self._executor)
            model.digest, model.contents = digest(files, written, version), contents(files)
            return model

    def rest(self) -> None:
        """The loads of the start are done: keep no process for further trials."""
        if self._trials is not None:
            self._trials.rest()

    def pause(self) -> None:
        """No load is expected soon: keep no process for trials until there is one."""
        if self._trials is not None:
            self._trials.pause()

    def close(self) -> None:
        """End the trials under way, and load nothing more; a load that is past its trial cannot be interrupted."""
        self._closed = True
        if self._trials is not None:
            self._trials.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


async def load_each(load: Callable[[str], Awaitable[None]], names: Iterable[str]) -> None:
    """Load the models of the start, all at the same time; one that fails is a line in the log. Raises StartError."""

    async def one(name: str) -> None:
        try:
            await load(name)
        except StartError:
            raise
        except ServingError as error:
            log.error("%s", error)

    loads = [asyncio.create_task(one(name)) for name in names]
    try:
        await asyncio.gather(*loads)
    finally:
        for each in loads:
            each.cancel()
