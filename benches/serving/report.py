"""The page RESULTS.md: the figures of all scenarios as tables, and the aims beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from benches.machine import machine
from benches.serving import beside, detour, floor, guarded, overload
from benches.serving.aims import aims
from benches.serving.ratios import ratio
from benches.serving.roster import REQUIREMENTS, peers

Figures = dict[str, Any]


def report(known: dict[str, Figures]) -> str:
    """Return RESULTS.md."""
    parts = [HEAD.format(machine=machine(), versions=versions())]
    for name, section in SECTIONS.items():
        if name in known:
            parts.append(f"{section(known[name])}\n\n{_when(known[name])}")
    missing = {peer: why for figures in known.values() for peer, why in figures.get("failed", {}).items()}
    if missing:
        parts.append("## Not measured here\n\n" + "\n".join(f"- {peer}: {why}" for peer, why in missing.items()))
    parts.insert(1, aims(known))
    return "\n\n".join(part.strip() for part in parts) + "\n"


HEAD = """# Servers of small models, side by side

Written by `python -m benches.serving`. {machine} {versions}

One client loads every server: the load generator of `normfold bench`, with one connection and requests of prepared
bytes (for HTTP servers with one connection for each request in flight). All servers of a table run at the same time and
are loaded one at a time, in short slices, in turns; each round begins with another server. Figures are medians over the
rounds, in parentheses the least and the largest. Ratios are taken within a round. Client and server share the CPUs, so
the CPU time for each request says more than the throughput. It is user and system time of all processes of a server.
`tiny` is one convolution, FP32[1,1,32] to FP32[1,10], which onnxruntime runs on one thread in every server; echo runs
no model and gives the bytes back. LitServe is called in its JSON and mosec in raw bytes, both over HTTP/1.1; all others
over gRPC in the Open Inference Protocol.

Triton here is the server of the package nvidia-pytriton, and `tiny` is a model of its Python backend, which calls
onnxruntime in a process of its own. That package has no other backend. Triton's own onnxruntime backend, in C++, should
take less time than this; it could not be installed where this was measured, so nothing here compares with it.
"""


def _when(figures: Figures) -> str:
    if "large" in figures:
        return f"{2 * figures['seconds']:g} s for each load, {figures['on']}."
    if isinstance(figures["rows"][0].get("seconds"), list):
        return f"{len(figures['rows'][0]['seconds'])} starts of each, {figures['on']}."
    return f"{figures['seconds']:g} s for each load and server in {figures['runs']} rounds, {figures['on']}."


def _peers(figures: Figures) -> str:
    return "## Every server, tiny model\n\n" + _table(figures, base="Triton")


def _in_flight(figures: Figures) -> str:
    return "## From 1 to 256 in flight\n\n" + _table(figures, base="grpcio echo")


def _stream(figures: Figures) -> str:
    return (
        "## Unary calls and one stream\n\nThe same server; the stream is ModelStreamInfer, answers matched by id.\n\n"
        + _table(figures, base=figures["rows"][0]["server"])
    )


def _payloads(figures: Figures) -> str:
    lines = [
        "| bytes each way | server | requests/s | CPU, µs/request | throughput over echo |",
        "|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        base = next(r for r in figures["rows"] if r["bytes"] == row["bytes"] and r["server"] == "grpcio echo")
        over = ratio(row, base, "per_second")
        lines.append(
            f"| {row['bytes']:,} | {row['server']} | {_spread(row, 'per_second', '{:,.0f}')} "
            f"| {_spread(row, 'cpu_us', '{:,.0f}')} | {over} |"
        )
    return "## Payloads, 4 in flight\n\nA model that gives its input back, beside echo.\n\n" + "\n".join(lines)


def _models(figures: Figures) -> str:
    lines = [
        "| models loaded | start to ready, s | RSS, MB | requests/s at 16 | CPU, µs/request | CPU over one model |",
        "|---|---|---|---|---|---|",
    ]
    base = figures["rows"][0]
    for row in figures["rows"]:
        count = row["server"].split()[0]
        ready = figures["ready"][count]
        lines.append(
            f"| {count} | {ready['seconds']:.2f} | {sum(ready['resident_bytes']) / 1e6:.0f} "
            f"| {_spread(row, 'per_second', '{:,.0f}')} | {_spread(row, 'cpu_us', '{:,.0f}')} "
            f"| {ratio(row, base, 'cpu_us')} |"
        )
    return f"## Many models\n\nThe frontend is {figures['frontend']}.\n\n" + "\n".join(lines)


def _starts(figures: Figures) -> str:
    lines = ["| server | start to first answer, s | resident memory of each process, MB |", "|---|---|---|"]
    for row in figures["rows"]:
        times = f"{statistics.median(row['seconds']):.2f} ({min(row['seconds']):.2f} to {max(row['seconds']):.2f})"
        sizes = ", ".join(f"{size / 1e6:.0f}" for size in row["resident_bytes"][-1])
        lines.append(f"| {row['server']} | {times} | {sizes} |")
    return "## Starting, one small model\n\n" + "\n".join(lines)


def _batching(figures: Figures) -> str:
    return (
        "## Dynamic batching\n\nA model that reads 16 MB of weights in every run (one row or 64); one thread, and the "
        f"frontend {figures['frontend']}.\n\n" + _table(figures, base="batching off")
    )


SECTIONS: dict[str, Callable[[Figures], str]] = {
    "peers": _peers,
    "in-flight": _in_flight,
    "stream": _stream,
    "payloads": _payloads,
    "models": _models,
    "starts": _starts,
    "batching": _batching,
    "floor": floor.section,
    "guarded": guarded.section,
    "beside": beside.section,
    "detour": detour.section,
    "overload": overload.section,
}


def _table(figures: Figures, base: str) -> str:
    known = {row["server"] for row in figures["rows"]}
    base = base if base in known else figures["rows"][0]["server"]
    lines = [
        "| in flight | server | CPU, µs/request | requests/s | p50, ms | p99, ms "
        f"| CPU over {base} | requests/s over {base} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        other = next(r for r in figures["rows"] if r["load"] == row["load"] and r["server"] == base)
        cells = [_spread(row, "cpu_us", "{:.0f}"), _spread(row, "per_second", "{:,.0f}")]
        cells += [_spread(row, "p50_ms", "{:.2f}"), _spread(row, "p99_ms", "{:.2f}")]
        cells += [str(ratio(row, other, "cpu_us")), str(ratio(row, other, "per_second"))]
        failed = sum(sum(part["errors"].values()) for part in row["rounds"])
        name = row["server"] + (f" ({failed} failed)" if failed else "")
        lines.append(f"| {row['load']} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(row: Figures, figure: str, form: str) -> str:
    values = [part[figure] for part in row["rounds"] if part[figure] is not None]
    if not values:
        return ""
    return f"{form.format(statistics.median(values))} ({form.format(min(values))} to {form.format(max(values))})"


def versions() -> str:
    """Return the versions of all servers."""
    found = [f"normfold {version('normfold')}", f"grpcio {version('grpcio')}", f"onnxruntime {version('onnxruntime')}"]
    for name in sorted({peer.environment for peer in peers() if peer.environment} - {"echo"}):
        pins = dict(line.split("==") for line in (REQUIREMENTS / f"{name}.txt").read_text().split() if "==" in line)
        if name == "triton":
            found.append(f"Triton 2.51 with its Python backend (nvidia-pytriton {pins['nvidia-pytriton']})")
        else:
            found.append(f"{name} {pins[name]}")
    return ", ".join(found) + "."
