"""A worker: a whole server in a process of its own, which listens once it has caught up with the others.

Started by the supervisor with its number, the file descriptor of the connection to it, and its ServerConfig as JSON. It
stops at SIGTERM, and when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from normfold.serving.errors import StartError
from normfold.serving.process import loops, memory
from normfold.serving.process.logs import LogSettings
from normfold.serving.server import Server, ServerConfig, stop_signal
from normfold.serving.workers.frames import Link
from normfold.serving.workers.member import Member

#: How often the supervisor is told what was counted.
REPORT_SECONDS = 1.0


def main() -> None:
    """Run the worker that the command line describes."""
    number, descriptor, text = sys.argv[1:]
    settings = json.loads(text)
    logs = LogSettings(settings.pop("log_level"))
    logs.install(sys.stderr, f"worker {number}: ")
    memory.keep_freed()
    if not loops.run(_work(int(number), int(descriptor), settings, logs)):
        sys.stderr.flush()
        os._exit(1)  # a model that still runs cannot be interrupted


async def _work(number: int, descriptor: int, settings: dict[str, Any], logs: LogSettings) -> bool:
    """Serve until told to stop; whether all that was on its way was answered."""
    stop = stop_signal()
    link = await Link.over(socket.socket(fileno=descriptor))
    member = Member(number, link)
    server: Server | None = None
    answered = False
    try:
        server = Server(_config(settings), logs, member.shared)
        member.tell_readiness(server.catalog, server.config.strict_readiness)
        attending = asyncio.create_task(_attend(member, server, stop))
        reporting = asyncio.create_task(_report(member, server))
        if await _unless(stop, server.load()):
            memory.settle()
            link.say("loaded", models=server.models())
            if await _unless(stop, member.listen.wait()):
                await server.listen(reuse_port=True)
                link.say("listening")
                await stop.wait()
    except StartError as error:
        link.say("failed", message=str(error), exit_code=error.exit_code)
    finally:
        if server is not None:
            answered = await server.shut_down()
            reporting.cancel()
            member.report_counters(server.catalog)
            attending.cancel()
        await link.close()
    return answered


async def _unless(stop: asyncio.Event, work: Coroutine[None, None, object]) -> bool:
    """Whether ``work`` was done before ``stop``. Raises what it raises."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        await working
        return True
    working.cancel()
    return False


async def _attend(member: Member, server: Server, stop: asyncio.Event) -> None:
    try:
        await member.attend(server.catalog)
    finally:
        stop.set()


async def _report(member: Member, server: Server) -> None:
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        member.report_counters(server.catalog)


def _config(settings: dict[str, Any]) -> ServerConfig:
    paths = {key: Path(settings[key]) for key in ("repository", "trace_file") if settings[key] is not None}
    return ServerConfig(**{**settings, **paths, "load_models": tuple(settings["load_models"])})


if __name__ == "__main__":
    main()
