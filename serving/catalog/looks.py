"""Looks at the names of a repository's models: one at a time, for all who ask."""

from __future__ import annotations

import asyncio

from normfold.serving.catalog.repository import Repository
from normfold.serving.process.file_thread import FileThread


class Looks:
    """Looks at a repository; used on the event loop.

    While one look is under way, all who ask share the next one, so that they see what was there when they asked. Many
    may ask and leave again while the file system hangs: there are never more than these two.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._files = FileThread("normfold-look")
        self._alone = asyncio.Lock()
        #: The look that has not begun yet.
        self._next: asyncio.Task[list[str]] | None = None

    async def names(self) -> list[str]:
        """The names of the models that the repository has now."""
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._look())
            self._next.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # all may have left
        return await asyncio.shield(self._next)

    async def _look(self) -> list[str]:
        async with self._alone:
            self._next = None
            return await self._files.run(lambda: list(self._repository.models()))
