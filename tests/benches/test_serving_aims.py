"""When the comparison of servers says that an aim was reached: invented figures, with the results by hand."""

from __future__ import annotations

import pytest
from benches.serving import guarded
from benches.serving.aims import aims
from benches.serving.ratios import ratio

from normfold.serving.load.rounds import Ratio


def rows(*per_second):
    """Our throughput at 64 in flight in each round, and MLServer's: 100 answers a second in each."""
    common = {"cpu_us": 1.0, "p50_ms": 1.0, "p99_ms": 1.0, "errors": {}}
    return [
        {"server": "normfold, grpcio", "load": "64", "rounds": [{**common, "per_second": each} for each in per_second]},
        {"server": "MLServer", "load": "64", "rounds": [{**common, "per_second": 100.0} for _ in per_second]},
    ]


@pytest.mark.parametrize(
    ("per_second", "verdict"),
    [
        ((310.0, 320.0, 500.0), "yes"),
        ((290.0, 320.0, 500.0), "by the median, not in every round"),
        ((290.0, 295.0, 500.0), "no"),
    ],
)
def test_yes_needs_every_round(per_second, verdict):
    (line,) = (line for line in aims({"peers": {"rows": rows(*per_second)}}).splitlines() if "3 × MLServer" in line)
    assert line.endswith(f"| {verdict} |")


def test_a_ratio_is_taken_round_by_round():
    mine, other = rows(300.0, 100.0, 200.0)
    assert ratio(mine, other, "per_second") == Ratio((3.0, 1.0, 2.0))
    assert str(ratio(mine, other, "per_second")) == "2.00 (1.00 to 3.00)"


def verdict(known, name):
    """The last cell of the row of the aim whose name contains ``name``."""
    (line,) = (line for line in aims(known).splitlines() if line.startswith("| ") and name in line)
    return line.rpartition(" | ")[2].removesuffix(" |")


def in_rounds(*values, figure="cpu_us"):
    return [{figure: value} for value in values]


@pytest.mark.parametrize(
    ("cpu", "said"),
    [((12.0, 11.0), "yes"), ((12.0, 11.0, 15.0), "by the median, not in every round"), ((13.0, 13.0), "no")],
)
def test_a_message_of_a_stream_is_compared_with_its_own_unary_call(cpu, said):
    rows = [
        {"server": "normfold, http2, stream", "load": "16", "rounds": in_rounds(*cpu)},
        {"server": "normfold, http2, unary", "load": "16", "rounds": in_rounds(*[10.0 for _ in cpu])},
    ]
    assert verdict({"stream": {"rows": rows}}, "stream's message") == said


@pytest.mark.parametrize(("at_64", "said"), [(16.0, "yes"), (17.0, "no")])
def test_each_number_in_flight_has_its_own_bound_over_the_floor(at_64, said):
    """The floor is 8 and 2 µs: 14 µs are 1.4 times it, 16 are 1.6 times."""
    rows = [{"server": "run", "in_flight": 0, "cpu_us": [2.0, 2.0]}]
    for load, cpu in ((1, 14.0), (16, 16.0), (64, at_64)):
        rows.append({"server": "nghttpd", "in_flight": load, "cpu_us": [8.0, 8.0]})
        rows.append({"server": "normfold, http2", "in_flight": load, "cpu_us": [cpu, cpu]})
    assert verdict({"floor": {"rows": rows}}, "nghttpd") == said


@pytest.mark.parametrize(
    ("workers", "pair", "said"),
    [(1, (2.0, 4.0), "yes"), (1, (2.0, 4.1), "no"), (2, (100.0, 90.0), "yes"), (2, (100.0, 89.0), "no")],
)
def test_what_is_beside_has_a_most_for_waits_and_a_least_for_throughput(workers, pair, said):
    rows = [{"server": "normfold, http2", "workers": workers, "rounds": [pair, pair]}]
    name = "20 ms model" if workers == 1 else "64 connections"
    assert verdict({"beside": {"rows": rows}}, name) == said


@pytest.mark.parametrize(("long", "said"), [(45.0, "yes"), (44.0, "no")])
def test_goodput_is_reached_if_it_is_for_every_kind_of_request(long, said):
    common = {"server": "normfold, http2", "seconds": 1.0}
    rows = [
        {"what": what, "times": times, "answered": answered, "peak": peak, **common}
        for what, times, answered, peak in (
            ("short", 1, 100.0, 100.0),
            ("short", 10, 95.0, 100.0),
            ("long", 1, 30.0, 50.0),
            ("long", 10, long, 50.0),
        )
    ]
    assert verdict({"overload": {"rows": rows}}, "goodput of http2") == said


@pytest.mark.parametrize(
    ("tls", "said"),
    [((18.0, 17.0), "yes"), ((17.0, 17.0, 19.0), "by the median, not in every round"), ((18.5, 18.5), "no")],
)
def test_costs_are_differences_within_a_round(tls, said):
    """In plain text a request takes 10 µs, with a token 11 and with metrics 10."""
    kinds = {
        "plain text": [10.0 for _ in tls],
        "TLS": tls,
        "token": [11.0 for _ in tls],
        "metrics": [10.0 for _ in tls],
    }
    rows = [{"server": f"http2, {kind}", "size": "128 bytes", "rounds": in_rounds(*cpu)} for kind, cpu in kinds.items()]
    assert verdict({"guarded": {"rows": rows}}, "TLS, a token and metrics") == said


def test_the_table_of_what_guards_a_server_has_what_it_adds():
    rows = [
        {"server": f"http2, {kind}", "size": "128 bytes", "rounds": [{"cpu_us": cpu, "per_second": speed}]}
        for kind, cpu, speed in (("plain text", 10.0, 400.0), ("TLS", 15.0, 200.0))
    ]
    text = guarded.section({"rows": rows})
    assert "| 128 bytes | http2, plain text | 10 |  |  |  |" in text
    assert "| 128 bytes | http2, TLS | 15 | 5.0 (5.0 to 5.0) | 1.50 (1.50 to 1.50) | 0.50 (0.50 to 0.50) |" in text
