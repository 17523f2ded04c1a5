"""The real Envoy with the files of ``deploy/envoy``, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from benches.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "deploy" / "envoy"
PROGRAM = Path(os.environ.get("INTEROP", ROOT / "build" / "interop")).resolve() / "envoy"


class Envoy:
    """A running Envoy; ``address`` is where clients go."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._log = folder, folder / "log"
        self.pid = 0
        self.address, self._admin = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        text = (FILES / "envoy.yaml").read_text().replace("/etc/envoy/", f"{folder}/")
        text = text.replace("port_value: 8000", f"port_value: {self.address.rpartition(':')[2]}")
        (folder / "envoy.yaml").write_text(text.replace("9901", self._admin.rpartition(":")[2]))

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process."""
        command = [str(PROGRAM), "--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c"]
        with self._log.open("wb") as log:
            return subprocess.Popen([*command, str(self._folder / "envoy.yaml")], stdout=log, stderr=log)

    def balance(self, addresses: Sequence[str]) -> None:
        """Make these the replicas: another file takes the place of the old one."""
        content = yaml.safe_load((FILES / "endpoints.yaml").read_text())
        one = content["resources"][0]["endpoints"][0]
        one["lb_endpoints"] = [
            {
                "endpoint": {
                    "address": {
                        "socket_address": {
                            "address": address.rpartition(":")[0],
                            "port_value": int(address.rpartition(":")[2]),
                        }
                    }
                }
            }
            for address in addresses
        ]
        beside = self._folder / "beside.yaml"
        beside.write_text(yaml.safe_dump(content))
        beside.replace(self._folder / "endpoints.yaml")

    def healthy(self) -> set[str]:
        """The addresses of the replicas that get requests."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{self._admin}/clusters?format=json") as got:
            found = set()
            for cluster in json.load(got)["cluster_statuses"]:
                for host in cluster.get("host_statuses", ()):
                    where = host["address"]["socket_address"]
                    if host["health_status"] == {"eds_health_status": "HEALTHY"}:
                        found.add(f"{where['address']}:{where['port_value']}")
            return found
        return set()


@contextlib.contextmanager
def envoy(addresses: Sequence[str], folder: Path) -> Iterator[Envoy]:
    """Envoy in front of these replicas, all of which are healthy when it is given."""
    folder.mkdir(parents=True, exist_ok=True)
    proxy = Envoy(folder)
    proxy.balance(addresses)
    process = proxy.start()
    proxy.pid = process.pid
    try:
        until = time.monotonic() + 60
        while proxy.healthy() != set(addresses):
            said = (folder / "log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < until, said
            time.sleep(0.02)
        yield proxy
    finally:
        process.terminate()
        process.wait(30)
