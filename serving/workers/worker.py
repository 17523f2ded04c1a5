"""A worker: a whole server in a process of its own, which listens once it has caught up with the others.

The supervisor starts it with its number, the file descriptor of the connection to the supervisor, its ServerConfig as
JSON, and "again" if workers of this server have served before. It stops at SIGTERM, and when the supervisor has ended.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import socket
import sys

from normfold.serving.errors import StartError
from normfold.serving.process import loops, memory, tuning, writer_thread
from normfold.serving.process.logs import LogSettings
from normfold.serving.process.signals import stop_signal
from normfold.serving.rpc.caller import trace_id
from normfold.serving.server import Server, done_before
from normfold.serving.settings import ServerConfig
from normfold.serving.workers.frames import worker_end
from normfold.serving.workers.messages import Listening, ModelsLoaded, StartFailed
from normfold.serving.workers.worker_link import WorkerLink
from normfold.shortage import shortage

log = logging.getLogger("normfold.serving.workers.worker")  # this module is run as __main__

#: Time between two reports of the counters to the supervisor.
REPORT_SECONDS = 1.0


def main() -> None:
    """Run the worker that the command line describes."""
    faulthandler.enable()  # a crash of a library is no silent end
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it can look; it mostly comes to the supervisor
    number, descriptor, text, *again = sys.argv[1:]
    config = ServerConfig.from_json(text)
    logs = LogSettings(config.log_level)
    answered = False
    try:
        logs.install(writer_thread.standard_error(), config.log_format, int(number), trace_id)
        tuning.tune()
        answered = loops.run(_work(int(number), int(descriptor), config, logs, bool(again)))
    except Exception as error:
        if lack := shortage(error):
            log.error("the worker ends: %s", lack)
        else:
            log.exception("the worker ends because of an unexpected error")
    finally:
        writer_thread.finish()
        os._exit(0 if answered else 1)  # a model that still runs or loads cannot be interrupted


async def _work(number: int, descriptor: int, config: ServerConfig, logs: LogSettings, again: bool) -> bool:
    """Serve until SIGTERM or the end of the supervisor; whether all requests under way were answered."""
    stop = stop_signal()
    link = await worker_end(socket.socket(fileno=descriptor))
    others = WorkerLink(number, link)
    server: Server | None = None
    answered = False
    try:
        server = Server(config, logs, others.share, number, again)
        others.report_readiness(server.catalog, config.strict_readiness)
        others.report_service(server.catalog)
        attending = asyncio.create_task(_attend(others, server, stop))
        reporting = asyncio.create_task(_report(others, server))
        if not again:  # else other workers answer there, and a probe or a scrape must not meet this one before it can
            server.open_http(reuse_port=True)
        if await done_before(stop, others.may_load.wait()) and await done_before(stop, server.load()):
            memory.settle()
            link.send(ModelsLoaded(tuple(server.models())))
            if await done_before(stop, others.listen.wait()):
                if others.lost and others.must_have_all:  # its share of the connections would get NOT_FOUND
                    raise StartError("; ".join(others.lost.values()))
                server.polling.try_again(others.lost)
                await server.listen(reuse_port=True)
                if again:
                    server.open_http(reuse_port=True)
                link.send(Listening())
                await stop.wait()
    except StartError as error:
        link.send(StartFailed(str(error), error.exit_code))
    finally:
        if server is not None:
            answered = await server.shut_down()
            reporting.cancel()
            others.report_counters(server.catalog, server.snapshots)
            attending.cancel()
            await asyncio.wait([attending])  # it reads the link
        await link.finish()
    return answered


async def _attend(others: WorkerLink, server: Server, stop: asyncio.Event) -> None:
    try:
        await others.attend(server.catalog, server.snapshots, server.look, server.polling.look_now)
    finally:
        stop.set()


async def _report(others: WorkerLink, server: Server) -> None:
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        others.report_counters(server.catalog, server.snapshots)


if __name__ == "__main__":
    main()
