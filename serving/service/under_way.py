"""Requests that bring files: they count among the bytes of such requests under way until their work has ended.

Requests of models do not count there, nor these among those of models. Otherwise a load of minutes would keep clients
from models that serve, and a busy server would never have room for a large one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace

from normfold.serving.rpc.caller import connection
from normfold.serving.rpc.methods import LOOP_BYTES, Method
from normfold.serving.rpc.pieces import Answer
from normfold.serving.scheduling.admission import LONGEST_RETRY, Admission


def admitted(method: Method, admission: Admission) -> Method:
    """The unary ``method``, which refuses a large request that ``admission`` has no room for, and counts the others."""

    def answer(data: bytes) -> Awaitable[Answer] | bytes:
        by, size = connection(), len(data)
        if size <= LOOP_BYTES:
            return method.answer(data)
        if (refusal := admission.refusal(None, by, size, None)) is not None:
            refusal.retry_seconds = LONGEST_RETRY  # a load takes a while, and whoever tries again sends all files again
            try:
                raise refusal
            finally:
                del refusal  # its traceback refers to this frame: a cycle that would keep the request in memory
        admission.enter(None, by, size)
        task = asyncio.get_running_loop().create_task(_answer(method, data))
        task.add_done_callback(lambda _: admission.leave(None, by, size))
        return _wanted(task)

    return replace(method, unary=None, wire_unary=answer)


async def _answer(method: Method, data: bytes) -> Answer:
    answer = method.answer(data)
    return answer if isinstance(answer, bytes) else await answer


async def _wanted(task: asyncio.Task[Answer]) -> Answer:
    """The result of ``task``. Whoever is cancelled cancels it, but does not wait for what it must bring to an end.

    A call of grpcio is under way until then: a server that stops would wait for one whose client has left.
    """
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else asks for it
        task.cancel()
        raise
    try:
        return task.result()
    finally:
        del task  # an error's traceback refers to this frame: a cycle that would keep the request in memory
