"""Answer a stream of requests: several at a time, with the answers in the order of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from normfold.serving.rpc.pieces import Answer, Pieces


async def in_order(
    requests: AsyncIterator[bytes], answer: Callable[[bytes], bytes | Awaitable[Answer]], in_flight: int
) -> AsyncIterator[bytes]:
    """``answer`` of each request, in the order of the requests, with up to ``in_flight`` under way at a time.

    Ends when the requests end. When the caller stops listening, the answers under way are cancelled.
    """
    pending: asyncio.Queue[bytes | asyncio.Future[Answer] | None] = asyncio.Queue(in_flight)

    async def read() -> None:
        try:
            async for request in requests:
                answered = answer(request)
                await pending.put(answered if isinstance(answered, bytes) else asyncio.ensure_future(answered))
        finally:
            await pending.put(None)

    reader = asyncio.ensure_future(read())
    try:
        while (answered := await pending.get()) is not None:
            found = answered if isinstance(answered, bytes) else await answered
            yield await found.joined() if isinstance(found, Pieces) else found
        await reader  # raises the error that ended the requests, if there was one
    finally:
        reader.cancel()
        while not pending.empty():
            if isinstance(left := pending.get_nowait(), asyncio.Future):
                left.cancel()
