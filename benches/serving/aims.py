"""The aims for our server in comparison with the others, and the figures that were reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benches.serving.ratios import Ratio, ratio, row
from benches.serving.roster import FRONTENDS

Figures = dict[str, Any]
Known = dict[str, Figures]
#: The aims "unchanged" and "never loses" leave this much room for noise.
MODELS_MORE, BATCHING_LESS = 1.05, 0.95
PEERS = ("Triton", "MLServer", "KServe", "LitServe", "mosec")


def aims(known: Known) -> str:
    """Return a table: the aim, the figure, whether it was reached.

    "yes" means that every round reached it; if only the median did, the table says so.
    """
    lines = ["## Aims and what was measured", "", "| aim | measured | reached |", "|---|---|---|"]
    for name, aim in AIMS.items():
        found = aim(known)
        if found is not None:
            lines.append(f"| {name} | {found[0]} | {found[1]} |")
    return "\n".join(lines)


def _over(known: Known, mine: str, other: str, load: str, figure: str) -> Ratio | None:
    rows = known.get("peers", {}).get("rows", [])
    above, below = row(rows, server=mine, load=load), row(rows, server=other, load=load)
    return ratio(above, below, figure) if above and below else None


def _better(known: Known, other: str, load: str, figure: str, least: bool) -> tuple[str, Ratio] | None:
    """Return the frontend of ours that does better in comparison with ``other``, and its ratio."""
    found = [(name, r) for name in FRONTENDS if (r := _over(known, name, other, load, figure))]
    return (min if least else max)(found, key=lambda pair: pair[1].median) if found else None


def _cpu_of_grpcio(known: Known) -> tuple[str, str] | None:
    found = [(load, _over(known, FRONTENDS[0], "grpcio echo", load, "cpu_us")) for load in ("16", "64")]
    pairs = [(load, r) for load, r in found if r]
    return (_listed(pairs), _at_most(1.2, [r for _, r in pairs])) if pairs else None


def _cpu_against(other: str, most: float, loads: tuple[str, ...]) -> Callable[[Known], tuple[str, str] | None]:
    def found(known: Known) -> tuple[str, str] | None:
        pairs = [(f"{load} ({b[0]})", b[1]) for load in loads if (b := _better(known, other, load, "cpu_us", True))]
        return (_listed(pairs), _at_most(most, [r for _, r in pairs])) if pairs else None

    return found


def _throughput(other: str, least: float) -> Callable[[Known], tuple[str, str] | None]:
    def found(known: Known) -> tuple[str, str] | None:
        loads = ("16", "64")
        pairs = [
            (f"{load} ({b[0]})", b[1]) for load in loads if (b := _better(known, other, load, "per_second", False))
        ]
        return (_listed(pairs), _at_least(least, [r for _, r in pairs])) if pairs else None

    return found


def _latency(known: Known) -> tuple[str, str] | None:
    said: list[str] = []
    all_pairs: list[Ratio] = []
    for figure, name in (("p50_ms", "p50"), ("p99_ms", "p99")):
        pairs = [(peer, b[1]) for peer in PEERS if (b := _better(known, peer, "1", figure, True))]
        said.append(f"{name} over " + ", ".join(f"{peer} {r.median:.2f}" for peer, r in pairs))
        all_pairs += [r for _, r in pairs]
    return ("; ".join(said), _at_most(1.0, all_pairs)) if known.get("peers") else None


def _payload(known: Known) -> tuple[str, str] | None:
    rows = known.get("payloads", {}).get("rows", [])
    base = row(rows, server="grpcio echo", bytes=1 << 22)
    found = [(n, ratio(r, base, "per_second")) for n in FRONTENDS if base and (r := row(rows, server=n, bytes=1 << 22))]
    return (_listed(found), _at_least(0.8, [max((r for _, r in found), key=lambda r: r.median)])) if found else None


def _start(known: Known) -> tuple[str, str] | None:
    rows = [r for n in FRONTENDS if (r := row(known.get("starts", {}).get("rows", []), server=n))]
    if not rows:
        return None
    said = [
        f"{r['server']}: {statistics.median(r['seconds']):.2f} s, {max(r['resident_bytes'][-1]) / 1e6:.0f} MB"
        for r in rows
    ]
    slowest = max(seconds for r in rows for seconds in r["seconds"])
    largest = max(r["resident_bytes"][-1][0] for r in rows)
    return "; ".join(said), _yes(slowest < 1.0 and largest < 120e6)


def _models(known: Known) -> tuple[str, str] | None:
    figures = known.get("models")
    if not figures:
        return None
    rows = figures["rows"]
    cpu = ratio(rows[-1], rows[0], "cpu_us")
    seconds = figures["ready"]["200"]["seconds"]
    return f"CPU over one model {cpu}; ready in {seconds:.1f} s", _at_most(MODELS_MORE, [cpu]) if seconds < 20 else "no"


def _batching(known: Known) -> tuple[str, str] | None:
    rows = known.get("batching", {}).get("rows", [])
    if not rows:
        return None
    found = []
    for load in ("1", "64"):
        on, off = row(rows, server="batching on", load=load), row(rows, server="batching off", load=load)
        if on and off:
            found.append((load, ratio(on, off, "per_second")))
    one, many = found[0][1], found[1][1]
    at_one, at_many = _at_least(BATCHING_LESS, [one]), _at_least(1.0, [many])
    return _listed(found), at_many if at_one == at_many else f"1: {at_one}; 64: {at_many}"


def _at_most(bound: float, ratios: list[Ratio]) -> str:
    return _verdict([r.median <= bound for r in ratios], [r.high <= bound for r in ratios])


def _at_least(bound: float, ratios: list[Ratio]) -> str:
    return _verdict([r.median >= bound for r in ratios], [r.low >= bound for r in ratios])


def _verdict(medians: list[bool], worst: list[bool]) -> str:
    if not all(medians):
        return "no"
    return "yes" if all(worst) else "by the median, not in every round"


def _yes(reached: bool) -> str:
    return "yes" if reached else "no"


def _listed(pairs: list[tuple[str, Ratio]]) -> str:
    return "; ".join(f"{name}: {each}" for name, each in pairs)


AIMS: dict[str, Callable[[Known], tuple[str, str] | None]] = {
    "CPU, grpcio frontend: at most 1.2 × echo (16, 64 in flight)": _cpu_of_grpcio,
    "CPU, the better frontend: at most 0.75 × Triton (16, 64)": _cpu_against("Triton", 0.75, ("16", "64")),
    "CPU, the better frontend: at most 2 × mosec (64)": _cpu_against("mosec", 2.0, ("64",)),
    "requests/s, the better frontend: at least 1.3 × Triton (16, 64)": _throughput("Triton", 1.3),
    "at least 3 × MLServer": _throughput("MLServer", 3.0),
    "at least 3 × KServe": _throughput("KServe", 3.0),
    "at least 5 × LitServe": _throughput("LitServe", 5.0),
    "p50 and p99 at 1 in flight, the better frontend: below every peer": _latency,
    "4 MB each way: at least 0.8 × echo's throughput": _payload,
    "ready in under 1.0 s, under 120 MB a process": _start,
    "200 models: CPU for each request at most 1.05 × that with one, ready in under 20 s": _models,
    "dynamic batching, requests/s on over off: above 1 at 64, at least 0.95 at 1": _batching,
}
