"""The cost of TLS, of a token and of metrics that somebody reads: the same models with each of them and with none."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import trustme
from benches.ports import free_ports
from benches.serving.networks import identity, publish, tiny
from benches.serving.ratios import ratio, row
from benches.serving.roster import CONFIG, serve
from benches.serving.running import Running, running
from benches.serving.watched import read

from normfold.serving.access.scopes import Scope
from normfold.serving.access.tokens import line, new_token
from normfold.serving.client.calls import infer_request
from normfold.serving.client.connection import ClientTls, Credentials
from normfold.serving.frontends import FRONTENDS
from normfold.serving.load.calls import UnaryCalls
from normfold.serving.load.generator import Load
from normfold.serving.load.rounds import Ratio, Target, measure

Figures = dict[str, Any]

PLAIN, TLS, TOKEN, METRICS = "plain text", "TLS", "token", "metrics"
SMALL = "128 bytes"
#: A model, its input, and the number of calls in flight.
CASES = {
    SMALL: ("tiny", np.zeros((1, 1, 32), np.float32), Load(in_flight=16)),
    "1 MiB": ("identity", np.zeros(1 << 18, np.float32), Load(in_flight=4)),
}


def guarded(seconds: float, rounds: int, work: Path) -> Figures:
    """A row for each message size and server; all servers run at the same time and are loaded in turns."""
    folder = work / "guarded"
    publish(tiny(), folder / "repository" / "tiny", CONFIG)
    publish(identity(), folder / "repository" / "identity", "")
    rows = []
    with contextlib.ExitStack() as stack:
        servers = [
            (name, stack.enter_context(server), credentials)
            for frontend in FRONTENDS
            for name, server, credentials in _servers(frontend, folder, stack)
        ]
        for size, (model, array, load) in CASES.items():
            message = _message(model, array)
            targets = [
                Target(name, UnaryCalls(server.address, [message], credentials=given), server.cpu_seconds)
                for name, server, given in servers
            ]
            for what in measure(targets, [load], seconds, rounds):
                print(f"  {size}, {what}", file=sys.stderr)
            for target in targets:
                target.calls.close()
                parts = [{"cpu_us": part.cpu_us, "per_second": part.per_second} for part in target.slices[load]]
                rows.append({"server": target.name, "size": size, "rounds": parts})
    return {"rows": rows, "failed": {}}


def _servers(
    frontend: str, folder: Path, stack: contextlib.ExitStack
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Running], Credentials]]:
    """Each server of a frontend, not started yet, with its name and what its clients show."""
    authority, token = trustme.CA(), new_token()
    issued = authority.issue_cert("127.0.0.1")
    here = folder / frontend
    here.mkdir(parents=True, exist_ok=True)
    authority.cert_pem.write_to_path(str(here / "ca"))
    issued.cert_chain_pems[0].write_to_path(str(here / "cert"))
    issued.private_key_pem.write_to_path(str(here / "key"))
    (here / "tokens").write_text(line("client", set(Scope), [], token) + "\n", encoding="utf-8")
    (metrics,) = free_ports(1)
    off = ("--metrics-listen", "off")
    kinds: dict[str, tuple[tuple[str, ...], Credentials]] = {
        PLAIN: (off, Credentials()),
        TLS: (
            (*off, "--tls-cert", str(here / "cert"), "--tls-key", str(here / "key")),
            Credentials(ClientTls(ca=here / "ca")),
        ),
        TOKEN: ((*off, "--tokens", str(here / "tokens")), Credentials(None, token)),
        METRICS: (("--metrics-listen", f"127.0.0.1:{metrics}"), Credentials()),
    }
    for kind, (options, credentials) in kinds.items():
        (port,) = free_ports(1)
        command = serve(folder / "repository", port, "--frontend", frontend, *options)
        (home := here / kind).mkdir(exist_ok=True)
        yield (
            f"{frontend}, {kind}",
            running(f"{frontend}, {kind}", command, port, _asking(credentials), home),
            credentials,
        )
    stack.enter_context(read(metrics))


def _asking(credentials: Credentials) -> Any:
    message = _message(*CASES[SMALL][:2])
    return lambda address: UnaryCalls(address, [message], credentials=credentials)


def _message(model: str, array: np.ndarray) -> bytes:
    return infer_request(model, {"x": array}, None).SerializeToString()


def cost_us(figures: Figures, frontend: str, kind: str, size: str = SMALL) -> Ratio | None:
    """Return the CPU time that ``kind`` adds to a request in microseconds, round by round; None: not measured."""
    mine, plain = (row(figures["rows"], server=f"{frontend}, {name}", size=size) for name in (kind, PLAIN))
    if mine is None or plain is None:
        return None
    pairs = zip(mine["rounds"], plain["rounds"], strict=True)
    return Ratio(tuple(above["cpu_us"] - below["cpu_us"] for above, below in pairs))


def section(figures: Figures) -> str:
    """Return the table for RESULTS.md."""
    lines = [
        "| message | server | CPU, µs/request | more than in plain text, µs | CPU over plain text "
        "| requests/s over plain text |",
        "|---|---|---|---|---|---|",
    ]
    for mine in figures["rows"]:
        frontend, _, kind = mine["server"].partition(", ")
        cpu = statistics.median(part["cpu_us"] for part in mine["rounds"])
        cells = [""] * 3
        if kind != PLAIN:
            base = row(figures["rows"], server=f"{frontend}, {PLAIN}", size=mine["size"])
            more = cost_us(figures, frontend, kind, mine["size"])
            if base is not None and more is not None:
                added = f"{more.median:,.1f} ({more.low:,.1f} to {more.high:,.1f})"
                cells = [added, str(ratio(mine, base, "cpu_us")), str(ratio(mine, base, "per_second"))]
        lines.append(f"| {mine['size']} | {mine['server']} | {cpu:,.0f} | " + " | ".join(cells) + " |")
    head = (
        "The same models in plain text, with TLS 1.3, with a token for each call, and with metrics that are read every "
        f"second. {' and '.join(f'{size} with {load.in_flight} in flight' for size, (_, _, load) in CASES.items())}."
    )
    return f"## TLS, tokens and metrics\n\n{head}\n\n" + "\n".join(lines)
