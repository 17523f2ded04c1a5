"""The models of this server, as its settings say: on which device, within how much memory, tried first or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from normfold.cache_folder import cache_folder
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.lazily import WAIT_SECONDS, LazyLimits
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.model import Model
from normfold.serving.catalog.repository import Repository
from normfold.serving.catalog.trial import LoadLimits, Trials
from normfold.serving.catalog.trust import Trust
from normfold.serving.process import memory
from normfold.serving.process.memory_limit import MemoryBudget, default_limit_bytes
from normfold.serving.runtime import limited_arena
from normfold.serving.runtime.devices import Device
from normfold.serving.runtime.tuning import Tuning
from normfold.serving.settings import ServerConfig


class Stock:
    """The catalog of a server, whose freed memory goes back to the system."""

    def __init__(
        self,
        config: ServerConfig,
        device: Device,
        cpus: int,
        executor: Executor,
        trust: Trust,
        work: Callable[[], tuple[int, int]],
        again: bool,
    ) -> None:
        """Find the models; nothing is loaded. ``work``: how many requests there were, and are. Raises StartError.

        ``again``: in a server that has begun before no model need be there.
        """
        lazily = config.load == "lazily"
        self._work = work
        budget = self._budget = MemoryBudget(config.memory_limit_bytes or default_limit_bytes())
        options = LoadOptions(
            device,
            cpus,
            config.threads,
            tuning=Tuning(cache_folder("threads"), cpus) if config.tune else None,
            allow_unproved_sizes=config.allow_unproved_sizes,
            budget=budget,
            arena=not lazily,
        )
        self.repository = Repository(config.repository, config.model_name, wait=again or config.model_control == "poll")
        trials = None
        if config.load_seconds:
            trials = Trials(LoadLimits(config.load_seconds, config.load_bytes), cache_folder("loads"))
        private = config.tokens is not None  # a token may be for some models alone
        lazy = LazyLimits(config.memory_budget_bytes, config.load_seconds or WAIT_SECONDS) if lazily else None
        self.catalog = Catalog(
            self.repository, options, executor, config.load_models, trials, trust, lazy, again, private
        )
        self.catalog.on_change(self._settle)
        self.catalog.on_change(self._give_back)

    def _settle(self) -> None:
        """Report to the budget the memory that the process has without runs."""
        _, under_way = self._work()
        self._budget.settle(sum(model.memory_bytes for model in self._ready()), busy=under_way > 0)

    def _ready(self) -> list[Model]:
        return [model for entry in self.catalog.entries.values() for model in entry.ready]

    def _give_back(self) -> None:
        """Give back what a load and the models that it replaced have left; on a thread, because it takes a while."""
        if self.catalog.started:
            asyncio.get_running_loop().run_in_executor(None, memory.give_back)

    async def give_back_all(self) -> None:
        """Give back what runs and requests have left."""
        for model in self._ready():
            await asyncio.to_thread(model.give_back)
        await asyncio.to_thread(limited_arena.give_back)
        memory.collect()
        await asyncio.to_thread(memory.give_back)
        self._settle()
