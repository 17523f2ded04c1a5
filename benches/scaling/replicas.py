"""``python -m benches.scaling.replicas REPOSITORY MODEL``: one replica, and several behind Envoy and Ray, measured.

Each replica gets a share of one CPU (a cgroup's quota), so that several of them fit beside client and proxy on a small
machine, and three answer three times as much as one unless the proxy is in the way. Writes measured.json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benches.machine import machine
from benches.ports import free_port
from benches.scaling.envoy import envoy
from tests.reliability.servers import serving

from normfold.serving.load.processes import tree

HERE = Path(__file__).resolve().parent
MEASURED = HERE / "measured.json"
#: The share of a CPU that a replica gets.
SHARE = 0.05
IN_FLIGHT = 16
PERIOD_MICROSECONDS = 20_000
GROUPS = Path("/sys/fs/cgroup/cpu")


@contextlib.contextmanager
def limited(pid: int, share: float) -> Iterator[None]:
    """The process and those that it starts get this share of one CPU. Raises OSError where that cannot be."""
    group = GROUPS / f"normfold-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
        (group / "cpu.cfs_quota_us").write_text(str(int(share * PERIOD_MICROSECONDS)))
        for each in tree([pid]):
            (group / "cgroup.procs").write_text(str(each))
        yield
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (GROUPS / "cgroup.procs").write_text(left)
        group.rmdir()


def ask(address: str, model: str, seconds: float, pid: int | None = None, in_flight: int = IN_FLIGHT) -> dict[str, Any]:
    """What ``normfold bench`` measures: requests a second, CPU for each in µs, latencies in ms; medians of rounds."""
    command = [
        sys.executable,
        "-m",
        "normfold",
        "bench",
        address,
        "--model",
        model,
        "--seconds",
        str(seconds),
        "--json",
    ]
    command += ["--in-flight", str(in_flight), "--connections", "4", *(["--server-pid", str(pid)] if pid else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (load,) = json.loads(done.stdout)["servers"][0]["loads"]
    rounds = load["rounds"]

    def middle(name: str) -> float | None:
        known = [one[name] for one in rounds if one[name] is not None]
        return round(statistics.median(known), 3) if known else None

    names = {"per_second": "per_second", "cpu_us": "server_cpu_us", "p50_ms": "p50_ms", "p99_ms": "p99_ms"}
    return {
        **{name: middle(key) for name, key in names.items()},
        "failed": sum(load["errors"].values()),
    }


def main() -> None:
    """Measure, and write measured.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--ray", type=Path, help="measure Ray Serve alone, with this interpreter; the rest is kept")
    chosen = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if chosen.ray:
        rows = json.loads(MEASURED.read_text())["rows"]
        rows["Ray, 2"] = _ray(chosen.ray, chosen.repository, chosen.model, chosen.seconds)
    else:
        _replicas(rows, chosen.repository, chosen.model, chosen.seconds)
    for name, row in rows.items():
        print(name, row)
    found = {"machine": machine(), "date": f"{datetime.date.today()}", "model": chosen.model, "share": SHARE}
    text = json.dumps({**found, "in_flight": IN_FLIGHT, "rows": rows}, indent=1)
    MEASURED.write_text(text + "\n", encoding="utf-8")


def _replicas(rows: dict[str, dict[str, Any]], repository: Path, model: str, seconds: float) -> None:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(serving(repository, "--max-queue-seconds", "60")) for _ in range(3)]
        first = servers[0]
        rows["alone, 1 in flight"] = ask(first.address, model, seconds, first.pid, 1)
        rows["alone"] = ask(first.address, model, seconds, first.pid)
        for server in servers:
            stack.enter_context(limited(server.pid, SHARE))
        rows["one replica"] = ask(first.address, model, seconds, first.pid)
        for count in (1, 3):
            with envoy([server.address for server in servers[:count]], folder / str(count)) as proxy:
                rows[f"Envoy, {count}"] = ask(proxy.address, model, seconds, proxy.pid)


def _ray(python: Path, repository: Path, model: str, seconds: float) -> dict[str, Any]:
    port = free_port()
    command = [str(python), str(HERE / "ray_cluster.py"), str(repository), str(port), "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None

        def wait_for(start: str) -> str:
            assert cluster.stdout is not None
            return next(line for line in cluster.stdout if line.startswith(start))

        wait_for("listening on")
        cluster.stdin.write("proxy\n")
        cluster.stdin.flush()
        pid = int(wait_for("pids:").split()[1])
        found = ask(f"127.0.0.1:{port}", model, seconds, pid)
        cluster.stdin.close()
    return found


if __name__ == "__main__":
    main()
