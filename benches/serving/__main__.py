"""Compare normfold with other servers: the same model, the same bytes, the same client, in turns.

    python -m benches.serving                         every scenario, then RESULTS.md; about ten minutes once installed
    python -m benches.serving --quick                 the same in a fifth of the time, to see that it works
    python -m benches.serving peers payloads          only these; RESULTS.md keeps the last figures of the others

Each server has a virtual environment of its own in --envs; a missing one is made from the file in requirements/. The
figures are kept as JSON in --work.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benches.serving.report import report
from benches.serving.scenarios import SCENARIOS, Bench

from normfold.whole_file import write_whole

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "serving"


def main() -> int:
    """Measure the scenarios, write their figures and the report, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="short slices; the figures are not worth keeping")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each load and server, default 4")
    parser.add_argument("--rounds", type=int, default=5, help="parts that the seconds are cut into, default 5")
    parser.add_argument("--envs", type=Path, default=BUILD / "environments", help="the peers' environments")
    parser.add_argument("--work", type=Path, default=BUILD, help="repositories, logs and figures")
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS.md")
    given = parser.parse_args()
    if given.seconds <= 0 or given.rounds < 1:
        parser.error("--seconds and --rounds take positive numbers")
    seconds, rounds, starts = (0.9, 3, 1) if given.quick else (given.seconds, given.rounds, 3)
    work: Path = given.work.resolve()
    bench = Bench(given.envs.resolve(), work / "servers", seconds, rounds, starts)
    figures = work / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for name in given.scenarios or SCENARIOS:
        print(name, file=sys.stderr)
        found = SCENARIOS[name](bench) | {"seconds": seconds, "runs": rounds, "on": time.strftime("%Y-%m-%d")}
        write_whole(figures / f"{name}.json", json.dumps(found, indent=1).encode())
    known = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in SCENARIOS
        if (path := figures / f"{name}.json").is_file()
    }
    write_whole(given.out, report(known).encode())
    print(f"wrote {given.out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
