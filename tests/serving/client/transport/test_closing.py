"""Which event loop a client works on, also in a child of its process."""

from __future__ import annotations

import asyncio
import os

import pytest

from normfold.serving.client.transport.closing import check_loop


async def checked(before: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    return check_loop(before)


def test_a_second_loop_is_told_while_the_first_runs_and_takes_its_place_after_that() -> None:
    async def first() -> asyncio.AbstractEventLoop:
        loop = check_loop(None)
        with pytest.raises(RuntimeError, match="use one AsyncClient for each event loop"):
            await asyncio.to_thread(asyncio.run, checked(loop))
        return loop

    before = asyncio.run(first())
    assert asyncio.run(checked(before)) is not before


def test_the_loop_of_the_parent_does_not_run_in_a_child() -> None:
    async def forked() -> int:
        loop = check_loop(None)
        if child := os.fork():
            return os.waitpid(child, 0)[1]
        code = 1
        try:
            code = 0 if asyncio.run(checked(loop)) is not loop else 2
        finally:
            os._exit(code)

    assert asyncio.run(forked()) == 0
