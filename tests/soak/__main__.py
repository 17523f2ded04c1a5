"""``make soak``: 1,000 reloads in an hour on each frontend, and a server that leaks on purpose; an hour or more."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.reliability.page import write_section
from tests.soak.soak import FIRST, GROWTH_BYTES, Soaked, served, soak, write_repository

from normfold.processor import processor_name
from normfold.serving.frontends import FRONTENDS

LEAKING = "tests.soak.leaking"
UNREFUSED = "malformed and answered"


def main() -> int:
    """Soak each server, write the figures, and return the exit code: 1 if one grew, or the leak was not caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--reloads", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60.0, help="for each frontend, default 60")
    parser.add_argument("--frontend", choices=FRONTENDS, action="append", help="default: each")
    given = parser.parse_args()
    runs: list[tuple[str, Soaked, bool]] = []
    with tempfile.TemporaryDirectory() as folder:
        repository = write_repository(Path(folder))
        for frontend in given.frontend or FRONTENDS:
            with served(repository, frontend) as (pid, address):
                runs.append((frontend, soak(pid, address, given.reloads, given.minutes * 60, 5.0), False))
        with served(repository, FRONTENDS[0], LEAKING) as (pid, address):
            control = soak(pid, address, max(30, given.reloads // 20), 60.0, 0.5)
        runs.append((f"{FRONTENDS[0]}, leaking on purpose", control, True))
    text = report(runs)
    write_section("Soak", text)
    print(text)
    return int(any(bool(found.grows()) != leaks or lost(found) for _, found, leaks in runs))


def lost(found: Soaked) -> int:
    """Requests that were lost or answered wrong."""
    return sum(
        count for status, count in found.answered.items() if status.startswith(("lost", "wrong")) or status == UNREFUSED
    )


def report(runs: list[tuple[str, Soaked, bool]]) -> str:
    """The figures as a table."""
    lines = [
        f"Written by `make soak` on {time.strftime('%Y-%m-%d')} ({processor_name()}). One worker answers requests of 1",
        "to 4 rows and 1 to 64 positions of 4 KB each from three clients; some requests are malformed or given up. Its",
        "model of 4 MB is loaded again and again meanwhile. *Growth* is the median of the last third of the samples",
        f"less that of the middle third; more than {GROWTH_BYTES >> 20} MiB is a failure. The last server leaks on",
        "purpose: it keeps every model that it loads, and the soak must notice that.",
        "",
        "| server | reloads | minutes | answered right | lost or wrong | resident, MiB: start, after a third, end "
        "| growth, MiB | files, threads: growth | grows |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found, _ in runs:
        samples, growth = found.samples, found.growth()
        after = samples[int(len(samples) * FIRST)]
        sizes = ", ".join(f"{s.resident_bytes >> 20}" for s in (samples[0], after, samples[-1]))
        lines.append(
            f"| {name} | {found.reloads:,} | {samples[-1].seconds / 60:.1f} | {found.answered['OK']:,} | {lost(found)} "
            f"| {sizes} | {growth.resident_bytes / (1 << 20):.1f} | {growth.files}, {growth.threads} "
            f"| {'; '.join(found.grows()) or 'no'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
