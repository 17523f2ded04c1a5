"""The aims for our server in comparison with the others, and the figures that were reached."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benches.aims import unreached
from benches.serving.floor import over_floor
from benches.serving.guarded import METRICS, TLS, TOKEN, cost_us
from benches.serving.overload import TIMES, share_of_peak
from benches.serving.ratios import Ratio, ratio, row
from benches.serving.roster import FRONTENDS

Figures = dict[str, Any]
Known = dict[str, Figures]
#: The aims "unchanged" and "never loses" leave this much room for noise.
MODELS_MORE, BATCHING_LESS = 1.05, 0.95
#: Requests in flight -> the most over the floor; and the least part of the peak that is left under overload.
FLOOR_MOST, GOODPUT = {1: 1.4, 16: 1.6, 64: 1.6}, 0.9
#: What TLS, a token and metrics may add to a request, in microseconds of CPU time.
COST_MOST = {TLS: 8.0, TOKEN: 1.0, METRICS: 1.0}
PEERS = ("Triton", "MLServer", "KServe", "LitServe", "mosec")


#: A figure as text, and whether the aim was reached; None: it was not measured.
Found = Callable[[Known], tuple[str, str] | None]


@dataclass(frozen=True)
class Aim:
    """One aim: its figure, and for the case that it is not reached, what bounds it and what was tried."""

    found: Found
    why: str = ""


def aims(known: Known) -> str:
    """Return a table: the aim, the figure, whether it was reached; below it, why some were not.

    "yes" means that every round reached it; if only the median did, the table says so.
    """
    lines = ["## Aims and what was measured", "", "| aim | measured | reached |", "|---|---|---|"]
    said = []
    for name, aim in AIMS.items():
        found = aim.found(known)
        if found is not None:
            lines.append(f"| {name} | {found[0]} | {found[1]} |")
            said.append((name, found[1] == "yes", aim.why))
    heading = "What bounds those that are not reached in every round, and what was tried:"
    return "\n".join(lines + unreached(heading, said))


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
    return (_listed(pairs), _at_most(1.3, [r for _, r in pairs])) if pairs else None


def _cpu_against(other: str, most: float, loads: tuple[str, ...]) -> Found:
    def found(known: Known) -> tuple[str, str] | None:
        pairs = [(f"{load} ({b[0]})", b[1]) for load in loads if (b := _better(known, other, load, "cpu_us", True))]
        return (_listed(pairs), _at_most(most, [r for _, r in pairs])) if pairs else None

    return found


def _throughput(other: str, least: float, loads: tuple[str, ...] = ("16", "64")) -> Found:
    def found(known: Known) -> tuple[str, str] | None:
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


def _payload(size: int, least: float) -> Found:
    def found(known: Known) -> tuple[str, str] | None:
        rows = known.get("payloads", {}).get("rows", [])
        base = row(rows, server="grpcio echo", bytes=size)
        pairs = [
            (n, ratio(r, base, "per_second")) for n in FRONTENDS if base and (r := row(rows, server=n, bytes=size))
        ]
        best = [max((r for _, r in pairs), key=lambda r: r.median)] if pairs else []
        return (_listed(pairs), _at_least(least, best)) if pairs else None

    return found


def _stream(known: Known) -> tuple[str, str] | None:
    rows = known.get("stream", {}).get("rows", [])
    pairs = []
    for load in ("1", "16", "64"):
        one = row(rows, server=f"{FRONTENDS[1]}, stream", load=load)
        other = row(rows, server=f"{FRONTENDS[1]}, unary", load=load)
        if one and other:
            pairs.append((load, ratio(one, other, "cpu_us")))
    return (_listed(pairs), _at_most(1.2, [r for _, r in pairs])) if pairs else None


def _floor(known: Known) -> tuple[str, str] | None:
    figures = known.get("floor")
    if figures is None:
        return None
    pairs = [(load, over_floor(figures, FRONTENDS[1], load)) for load in FLOOR_MOST]
    within = [(ratio.median <= FLOOR_MOST[load], ratio.high <= FLOOR_MOST[load]) for load, ratio in pairs]
    medians, worst = map(list, zip(*within, strict=True))
    return _listed([(str(load), ratio) for load, ratio in pairs]), _verdict(medians, worst)


def _beside(workers: int, bound: float) -> Found:
    def found(known: Known) -> tuple[str, str] | None:
        one = row(known.get("beside", {}).get("rows", []), server=FRONTENDS[1], workers=workers)
        if one is None:
            return None
        over = Ratio.of(*zip(*[(many, alone) for alone, many in one["rounds"]], strict=True))
        return str(over), (_at_most if workers == 1 else _at_least)(bound, [over])

    return found


def _costs(known: Known) -> tuple[str, str] | None:
    figures = known.get("guarded")
    if figures is None:
        return None
    found = {kind: more for kind in COST_MOST if (more := cost_us(figures, FRONTENDS[1].rpartition(" ")[2], kind))}
    within = [(more.median <= COST_MOST[kind], more.high <= COST_MOST[kind]) for kind, more in found.items()]
    medians, worst = map(list, zip(*within, strict=True))
    return _listed(list(found.items())), _verdict(medians, worst)


def _goodput(frontend: str) -> Found:
    def found(known: Known) -> tuple[str, str] | None:
        figures = known.get("overload", {"rows": []})
        rows = [each for each in figures["rows"] if each["server"] == frontend and each["times"] == max(TIMES)]
        shares = {each["what"]: share_of_peak(each) for each in rows}
        said = "; ".join(f"{what}: {share:.2f}" for what, share in shares.items())
        return (said, _yes(min(shares.values()) >= GOODPUT)) if shares else None

    return found


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


_PYTHON = (
    "Headers, frames and counting are Python: 5 to 9 µs of a request with a warm cache, two to three times that beside "
    "a client on the same two cores ([frontends](../../docs/frontends.md#where-the-time-of-a-request-goes)). The run "
    "of `tiny` by onnxruntime's Python binding is 10 to 30 µs. mypyc on the three hottest modules was tried, and "
    "brought nothing."
)

AIMS: dict[str, Aim] = {
    "CPU, http2: at most 0.22 × Triton (16, 64 in flight)": Aim(_cpu_against("Triton", 0.22, ("16", "64")), _PYTHON),
    "CPU over nghttpd and the bare run, http2: at most 1.4, 1.6, 1.6 (1, 16, 64)": Aim(
        _floor, f"{_PYTHON} nghttpd parses nothing and sends 66 bytes from C; its floor is that of another language."
    ),
    "CPU, grpcio frontend: at most 1.3 × echo (16, 64)": Aim(
        _cpu_of_grpcio, "gRPC's library takes most of it, in both: the ratio is noise of the machine around 1."
    ),
    "CPU, http2: at most 2 × mosec (64)": Aim(_cpu_against("mosec", 2.0, ("64",))),
    "requests/s, http2: at least 1.2 × mosec (64)": Aim(
        _throughput("mosec", 1.2, ("64",)), "The client shares the two cores, and takes as much of them as the server."
    ),
    "requests/s, http2: at least 1.3 × Triton (16, 64)": Aim(_throughput("Triton", 1.3)),
    "at least 3 × MLServer": Aim(_throughput("MLServer", 3.0)),
    "at least 3 × KServe": Aim(_throughput("KServe", 3.0)),
    "at least 5 × LitServe": Aim(_throughput("LitServe", 5.0)),
    "p50 and p99 at 1 in flight: below every peer": Aim(_latency),
    "CPU of a stream's message, http2: at most 1.2 × its unary call (1, 16, 64)": Aim(
        _stream,
        "A message of the stream has an id, by which its answer is matched: it is read, and written into the answer. "
        "The unary calls have none, and their headers cost little, because equal ones are read once.",
    ),
    "4 MB each way: at least 0.8 × echo's throughput": Aim(_payload(1 << 22, 0.8)),
    "16 MB each way: at least 1.1 × echo's throughput": Aim(
        _payload(1 << 24, 1.1),
        "Echo gives its bytes back; the model copies them once more, from its input to its output, and a request whose "
        "numbers are not aligned is copied once before. Both are 16 MB.",
    ),
    "TLS, a token and metrics, http2, 16 in flight: at most 8, 1 and 1 µs for a request": Aim(
        _costs,
        "A token is a look into a dict for each call, metrics are counters that are there without them: the difference "
        "of two servers' CPU time, each with a spread of several µs, cannot show one. TLS 1.3 is OpenSSL's, once for "
        "all frames of a wake-up.",
    ),
    "p99 of `tiny` while a 20 ms model runs: at most 2 × its p99 alone": Aim(
        _beside(1, 2.0),
        "Server, run and client are three threads on two cores, so one of them waits for a slice of the scheduler "
        "(1.4 ms). Tried: runs as SCHED_BATCH and at a lower priority, which brought nothing measurable, and shorter "
        "slices or SCHED_IDLE, which made it 4 ms.",
    ),
    "64 connections × 1 in flight, 2 workers: at least 0.9 × 1 connection × 64": Aim(
        _beside(2, 0.9),
        "One request comes with each read of a socket, in place of many: the system's share of a request is 29 µs "
        "then, in place of 1. The client reads 64 sockets, too, on the same two cores.",
    ),
    "goodput of http2 at 10 × the capacity: at least 0.9": Aim(
        _goodput(FRONTENDS[1]),
        "On one core, runs and refusals share it, and there are nine refusals for each answer. With a warm cache one "
        "takes 11 µs, and 2.7 µs in a burst of like ones on one connection; runs empty the caches, and beside them it "
        "takes 8 µs, with its share of the wake-up and of the request's bytes. Tried: reading a refused connection "
        "only every 4 to 30 ms, each by itself or all together (up to 0.01 more); a pause of 2 to 15 ms of the event "
        "loop after each refusal; rarer garbage collections; runs as SCHED_BATCH (all are refused at once then, but "
        "goodput is no better).",
    ),
    "goodput of grpcio at 10 × the capacity: at least 0.9": Aim(
        _goodput(FRONTENDS[0]), "A refusal costs as much as an answer: gRPC's library hands both to Python alike."
    ),
    "ready in under 1.0 s, under 120 MB a process": Aim(_start),
    "200 models: CPU for each request at most 1.05 × that with one, ready in under 20 s": Aim(
        _models, "A model is found by its name in a dict: the ratio is the noise of the machine around 1."
    ),
    "dynamic batching, requests/s on over off: above 1 at 64, at least 0.95 at 1": Aim(
        _batching,
        "With one request in flight no batch has a second row, and both servers do the same: the ratio is the noise of "
        "the machine around 1.",
    ),
}
