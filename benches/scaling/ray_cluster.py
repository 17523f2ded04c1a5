"""``python benches/scaling/ray_cluster.py REPOSITORY PORT REPLICAS``: deploy/ray on a local cluster of its own.

It runs in an environment with Ray (deploy/ray/requirements.txt). It prints "listening on 127.0.0.1:PORT" when all
replicas answer. Each line "replicas" on standard input is answered with "pids:" and the process ids of the replicas,
"proxy" with that of Ray's proxy. It ends with its standard input.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "src", ROOT / "deploy" / "ray")
sys.path[:0] = map(str, FOLDERS)
os.environ.setdefault("RAY_raylet_start_wait_time_s", "240")  # a busy machine

import ray  # noqa: E402
import yaml  # noqa: E402
from ray import serve  # noqa: E402
from ray.util.state import list_actors  # noqa: E402

NAME = "normfold"


def main() -> None:
    """Deploy, and answer questions until standard input ends."""
    repository, port, replicas = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    environment = {"PYTHONPATH": ":".join(map(str, FOLDERS)), "RAY_SERVE_ENABLE_TASK_EVENTS": "0"}
    ray.init(num_cpus=8, include_dashboard=True, dashboard_port=0, runtime_env={"env_vars": environment})
    config: dict[str, Any] = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    options = {**config["grpc_options"], "port": port}
    serve.start(proxy_location="EveryNode", grpc_options=options, http_options={"port": 0, "host": "127.0.0.1"})
    (application,) = config["applications"]
    from normfold_ray import Replica

    (deployment,) = application["deployments"]
    deployment = {**deployment, "autoscaling_config": None, "num_replicas": replicas}
    arguments = {**application["args"], "repository": repository, "poll_seconds": 0.2, "log_level": "error"}
    serve.run(serve.deployment(Replica, **deployment).bind(**arguments), name=NAME, route_prefix="/")
    while serve.status().applications[NAME].status != "RUNNING":
        time.sleep(0.1)
    print(f"listening on 127.0.0.1:{port}", flush=True)
    for line in sys.stdin:
        wanted = f"ServeReplica:{NAME}:{NAME}" if line.strip() == "replicas" else "ProxyActor"
        alive = [actor.pid for actor in list_actors(filters=[("state", "=", "ALIVE")]) if actor.class_name == wanted]
        print("pids:", *alive, flush=True)
    serve.shutdown()
    ray.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main()
