"""What supervisor and worker say to each other arrives as it was said."""

from __future__ import annotations

import asyncio
import socket

from normfold.serving.workers.frames import Link


def between(speak, hear):
    """What ``hear`` gives at one end of a connection while ``speak`` uses the other."""

    async def run():
        one, two = socket.socketpair()
        left, right = await Link.over(one), await Link.over(two)
        speaking = asyncio.create_task(speak(left))
        try:
            return await asyncio.wait_for(hear(right), 30)
        finally:
            await speaking
            await left.close()
            await right.close()

    return asyncio.run(run())


def test_fields_and_bytes_arrive_in_order():
    big = bytes(range(256)) * 20_000  # more than any buffer between them

    async def speak(link):
        link.say("call", big, b"", b"x", id=7, key=["model", "ü\n"])
        link.say("listen")

    async def hear(link):
        return [await link.hear(), await link.hear()]

    first, second = between(speak, hear)
    assert first == ("call", {"id": 7, "key": ["model", "ü\n"]}, [big, b"", b"x"])
    assert second == ("listen", {}, [])


def test_an_end_that_has_gone_is_none_even_in_the_middle_of_a_frame():
    async def speak(link):
        link.say("call", b"abc")
        link._writer.write(b"\x10\x00\x00\x00{")
        await link.close()

    async def hear(link):
        return [await link.hear(), await link.hear()]

    first, second = between(speak, hear)
    assert first.kind == "call"
    assert second is None
