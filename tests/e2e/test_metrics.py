"""The HTTP port of a real server: a scrape under load adds up with ModelStatistics, also after a worker was killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
from benches.ports import free_port
from prometheus_client.parser import text_string_to_metric_families
from tests.waiting import wait_until

from normfold.protos import grpc_service as pb
from normfold.serving.client.client import Client, ClientError

from .conftest import write_model
from .several_workers import call, connections, infer, workers
from .test_endless import ENDLESS, Starting

HTTP = ("--metrics-listen", "127.0.0.1:0")


def http_address(server) -> str:
    """The address in the line that the server prints."""
    return next(match[1] for line in server.lines if (match := re.match(r"metrics on http://(\S+)/metrics", line)))


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def plain(name: str) -> str:
    """The name as it is in the text: the parser writes "_total" behind every counter's name, and Triton does not."""
    return name.removesuffix("_total") if name.startswith("nv_") else name


def scraped(address: str) -> dict[tuple[str, frozenset], float]:
    families = text_string_to_metric_families(get(address, "/metrics")[1])
    return {(plain(s.name), frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def of(model: str, version: str, **labels: str) -> frozenset:
    return frozenset({"model": model, "version": version, **labels}.items())


def test_metrics_of_two_workers_add_up_with_model_statistics_and_survive_a_killed_worker(repository, start, frontend):
    with start(repository, "--frontend", frontend, "--workers", "2", *HTTP) as server:
        address = http_address(server)
        assert get(address, "/readyz")[0] == 200
        with connections(server.address) as channels:
            for channel in channels:
                for _ in range(5):
                    infer(channel)
        with Client(server.address) as client:
            for bad in (np.zeros((1, 3), np.float32), np.zeros((9, 4), np.float32)):
                with np.testing.assert_raises(ClientError):
                    client.infer("m", {"x": bad})
        with grpc.insecure_channel(server.address) as channel:
            statistics = call(channel, "ModelStatistics", pb.ModelStatisticsRequest(name="m"))
        total = sum(each.inference_stats.success.count for each in statistics.model_stats)
        rows = scraped(address)
        assert rows["nv_inference_request_success", of("m", "2")] == total == 80
        assert rows["normfold_request_duration_seconds_count", of("m", "2", phase="request")] == 80
        assert rows["normfold_request_failures_total", of("m", "2", status="INVALID_ARGUMENT")] == 2
        assert rows["normfold_workers", frozenset()] == 2
        os.kill(workers(server)[0], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                rows = scraped(address)
            except OSError:  # the worker that took this connection is the one that ends
                continue
            assert rows["nv_inference_request_success", of("m", "2")] == 80
            if rows["normfold_workers", frozenset()] == 2 and get(address, "/readyz")[0] == 200:
                break
            time.sleep(0.2)
        else:
            raise AssertionError("the worker was not replaced")


def test_health_over_http_says_what_health_over_grpc_says(repository, start):
    with start(repository, *HTTP) as server:
        address = http_address(server)
        for path, expected in {
            "/livez": 200,
            "/readyz": 200,
            "/v2/health/live": 200,
            "/v2/health/ready": 200,
            "/v2/models/m/ready": 200,
            "/v2/models/m/versions/1/ready": 200,
            "/v2/models/m/versions/7/ready": 503,
            "/v2/models/nowhere/ready": 404,
            "/v2/models/m/versions/x/ready": 400,
            "/": 404,
        }.items():
            assert get(address, path)[0] == expected, path
        with grpc.insecure_channel(server.address) as channel:
            call(channel, "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m"))
        assert get(address, "/v2/models/m/ready")[0] == 503


def test_a_port_that_is_taken_is_an_error_where_it_was_asked_for(repository, start, tmp_path):
    import subprocess
    import sys

    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        for count in ("1", "2"):
            command = [sys.executable, "-m", "normfold", "serve", "-r", str(repository), "--listen", "127.0.0.1:0"]
            done = subprocess.run(
                [*command, "--metrics-listen", listen, "--workers", count], capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 1
            assert f"cannot listen on {listen}" in done.stderr
            assert "--metrics-listen" in done.stderr
            assert "Traceback" not in done.stderr


def test_the_snapshot_is_a_method_too(address):
    from normfold.protos import metrics as mx

    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(
            "/normfold.Metrics/Snapshot",
            request_serializer=mx.SnapshotRequest.SerializeToString,
            response_deserializer=mx.SnapshotResponse.FromString,
        )
        names = {one.statistics.name for one in ask(mx.SnapshotRequest(), timeout=30).models}
    assert {"m", "nb", "two", "text"} <= names


def test_a_server_of_two_workers_is_live_and_not_ready_while_it_loads_its_models(tmp_path):
    write_model(tmp_path / "endless", ENDLESS)
    address = f"127.0.0.1:{free_port()}"
    with Starting(tmp_path, "--workers", "2", "--metrics-listen", address, "--load-seconds", "600") as server:

        def live():
            try:
                return get(address, "/livez")
            except OSError:
                return None

        assert wait_until(live) == (200, "live\n")
        assert get(address, "/readyz")[0] == 503
        assert get(address, "/v2/models/endless/ready")[0] in (404, 503)
        assert get(address, "/metrics")[0] == 503
        assert get(address, "/livez")[0] == 200
        server.process.terminate()
        output = server.ended()
    assert server.process.returncode == 0, output
    assert "Traceback" not in output
