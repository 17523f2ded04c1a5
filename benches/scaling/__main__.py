"""``python -m benches.scaling``: 10, 100 and 1,000 replicas simulated from measured.json, and what a million costs.

With ``--write`` the tables take their place in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from benches.scaling.queueing import POLICIES, Service, exponential, waits

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "scaling.md"
REPLICAS, LOADS = (10, 100, 1000), (0.5, 0.7, 0.9)
#: Requests that are simulated for each replica, and at least in all.
EACH, LEAST = 200, 40_000
#: The price of one CPU for an hour that is assumed, in dollars: about a virtual CPU of the large clouds, on demand.
HOUR_DOLLARS = 0.04
#: The part of their time that replicas should work at most.
AIM = 0.6


def simulated(service: Service, seconds: float, replicas: tuple[int, ...] = REPLICAS) -> str:
    """The table of waits, in Markdown."""
    lines = [
        "| replicas | working | requests/s | random: p50, p99 | least of two: p50, p99 | one queue: p50, p99 |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for count in replicas:
        for load in LOADS:
            cells = []
            for policy in POLICIES:
                found = waits(policy, count, load, service, max(LEAST, EACH * count))
                low, high = np.quantile(found, [0.5, 0.99]) * 1000
                cells.append(f"{low:.2f}, {high:.2f} ms")
            lines.append(f"| {count:,} | {load:.0%} | {count * load / seconds:,.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def costs(rows: dict[str, dict[str, Any]]) -> str:
    """The table of what a million requests cost, in Markdown."""
    server = rows["alone"]["cpu_us"]
    ways = {"one server": 0.0, "replicas behind Envoy": rows["Envoy, 3"]["cpu_us"]}
    if "Ray, 2" in rows:
        ways["replicas behind Ray Serve"] = rows["Ray, 2"]["cpu_us"]
    lines = ["| | server, µs of CPU | proxy, µs of CPU | a million requests |", "|---|---:|---:|---:|"]
    for name, proxy in ways.items():
        dollars = (server + proxy) / AIM / 3600 * HOUR_DOLLARS
        lines.append(f"| {name} | {server:,.0f} | {proxy:,.0f} | ${dollars:.4f} |")
    return "\n".join(lines)


def ways(rows: dict[str, dict[str, Any]]) -> str:
    """The table of what was measured, in Markdown."""
    lines = [
        "| | requests/s | p50 | p99 | CPU a request, of server or proxy | failed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        cpu = "" if row["cpu_us"] is None else f"{row['cpu_us']:,.0f} µs"
        cells = (f"{row['per_second']:,.0f}", f"{row['p50_ms']:.2f} ms", f"{row['p99_ms']:.2f} ms", cpu, row["failed"])
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Each table of the page by its name."""
    rows = found["rows"]
    seconds = rows["alone"]["cpu_us"] / 1e6
    head = f"{found['machine']} {found['date']}, model `{found['model']}`."
    return {
        "measured": f"{head}\n\n{ways(rows)}",
        "simulated": simulated(exponential(seconds), seconds),
        "costs": costs(rows),
    }


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/scaling.md")
    chosen = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables(json.loads((HERE / "measured.json").read_text())).items():
        print(f"{name}\n{table}\n")
        mark = f"<!-- {name} -->"
        text, times = re.subn(f"{mark}.*?{mark}", lambda _, t=table, m=mark: f"{m}\n{t}\n{m}", text, flags=re.DOTALL)
        assert times == 1, f"{PAGE} has no place for {name}"
    if chosen.write:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
