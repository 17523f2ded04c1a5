"""The cost of TLS and of a token: one small model, each frontend in plain text, with TLS, and with a token.

    python -m benches.serving.guarded [--seconds 4] [--rounds 5]

All servers run at the same time and are loaded in turns. Prints a table for docs/security.md.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import trustme
from benches.ports import free_ports
from benches.serving.networks import identity, publish, tiny
from benches.serving.roster import CONFIG, serve
from benches.serving.running import Running, running

from normfold.serving.access.scopes import Scope
from normfold.serving.access.tokens import line, new_token
from normfold.serving.client.calls import infer_request
from normfold.serving.client.connection import ClientTls, Credentials
from normfold.serving.frontends import FRONTENDS
from normfold.serving.load.calls import UnaryCalls
from normfold.serving.load.generator import Load
from normfold.serving.load.rounds import Target, measure, ratio

#: A model, its input, and the number of calls in flight.
CASES = {
    "128 bytes": ("tiny", np.zeros((1, 1, 32), np.float32), Load(in_flight=16)),
    "1 MiB": ("identity", np.zeros(1 << 18, np.float32), Load(in_flight=4)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        measured = compare(Path(folder), stack, options.seconds, options.rounds)
    print("| message | server | CPU, µs/request | CPU over plain text | requests/s over plain text |")
    print("|---|---|---|---|---|")
    for case, name, cpu, over, speed in measured:
        print(f"| {case} | {name} | {cpu:.0f} | {over} | {speed} |")


def compare(
    work: Path, stack: contextlib.ExitStack, seconds: float, rounds: int
) -> list[tuple[str, str, float, str, str]]:
    """Return a row for each message size and server."""
    publish(tiny(), work / "repository" / "tiny", CONFIG)
    publish(identity(), work / "repository" / "identity", "")
    authority, token = trustme.CA(), new_token()
    issued = authority.issue_cert("127.0.0.1")
    for name, part in (
        ("ca", authority.cert_pem),
        ("cert", issued.cert_chain_pems[0]),
        ("key", issued.private_key_pem),
    ):
        part.write_to_path(work / name)
    (work / "tokens").write_text(line("client", set(Scope), [], token) + "\n", encoding="utf-8")
    tls = ClientTls(ca=work / "ca")
    kinds: dict[str, tuple[tuple[str, ...], Credentials]] = {
        "plain text": ((), Credentials()),
        "TLS": (("--tls-cert", str(work / "cert"), "--tls-key", str(work / "key")), Credentials(tls)),
        "token": (("--tokens", str(work / "tokens")), Credentials(None, token)),
    }
    found = []
    servers: list[tuple[str, Running, Credentials]] = []
    for frontend in FRONTENDS:
        for kind, (options, credentials) in kinds.items():
            (port,) = free_ports(1)
            command = serve(work / "repository", port, "--frontend", frontend, *options)
            ask = lambda address, given=credentials: UnaryCalls(  # noqa: E731
                address, [_message("tiny", CASES["128 bytes"][1])], credentials=given
            )
            (home := work / f"{frontend}-{kind}").mkdir()
            server = stack.enter_context(running(f"{frontend}, {kind}", command, port, ask, home))
            servers.append((f"{frontend}, {kind}", server, credentials))
    for case, (model, array, load) in CASES.items():
        targets = [
            Target(name, UnaryCalls(server.address, [_message(model, array)], credentials=given), server.cpu_seconds)
            for name, server, given in servers
        ]
        for what in measure(targets, [load], seconds, rounds):
            print(f"  {case}, {what}", file=sys.stderr)
        for number, target in enumerate(targets):
            target.calls.close()
            base = targets[number - number % len(kinds)]
            cpu = ratio(target, base, load, lambda part: part.cpu_us)
            speed = ratio(target, base, load, lambda part: part.per_second)
            found.append((case, target.name, target.total(load).cpu_us or 0.0, str(cpu), str(speed)))
    return found


def _message(model: str, array: np.ndarray) -> bytes:
    return infer_request(model, {"x": array}, None).SerializeToString()


if __name__ == "__main__":
    main()
