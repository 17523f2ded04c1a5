"""A server over a repository on S3: a real server of S3's protocol, started here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from onnx import parser
from tests.waiting import wait_until

from normfold.manifest import manifest
from normfold.serving.client.client import Client

from .conftest import SCALE

moto_server = pytest.importorskip("moto.server", reason="moto is missing: pip install 'moto[s3]' flask flask-cors")
botocore = pytest.importorskip("botocore.session", reason="s3fs is missing: pip install 'normfold[remote]'")

X = np.array([[1, 2, 3, 4]], np.float32)
POLL = ("--model-control", "poll", "--poll-seconds", "0.2")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def put(endpoint, monkeypatch, tmp_path, request):
    """Puts a version into a bucket; ``put.url`` is that of the repository."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NORMFOLD_CACHE_DIR": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    s3 = botocore.get_session().create_client("s3")
    bucket = f"b{abs(hash(request.node.nodeid))}"
    s3.create_bucket(Bucket=bucket)

    def put_version(factor: float, version: int, *, only: tuple[str, ...] = ("model.onnx", "manifest.json")) -> None:
        model = parser.parse_model(SCALE.replace("FACTOR", f"{factor}")).SerializeToString()
        for name, body in {"model.onnx": model, "manifest.json": manifest({"model.onnx": model})}.items():
            if name in only:
                s3.put_object(Bucket=bucket, Key=f"models/m/{version}/{name}", Body=body)

    put_version.url = f"s3://{bucket}/models"
    return put_version


def factor(client) -> float:
    return float(client.infer("m", X)["y"][0, 0])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_polls_a_bucket(put, start, workers):
    put(2.0, 1)
    with start(put.url, *POLL, "--workers", workers) as server, Client(server.address) as client:
        assert factor(client) == 2
        put(3.0, 2, only=("manifest.json",))
        wait_until(lambda: any("'m/2' is not whole yet" in line for line in server.lines))
        assert factor(client) == 2
        put(3.0, 2)
        wait_until(lambda: factor(client) == 3)


def test_a_bucket_is_looked_at_when_a_client_loads_and_at_a_hang_up(put, start):
    put(2.0, 1)
    with start(put.url) as server, Client(server.address) as client:
        put(3.0, 2)
        client.load("m")
        assert factor(client) == 3
        put(4.0, 3)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: factor(client) == 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "there is no such bucket"),
        (
            {
                "AWS_ACCESS_KEY_ID": "",
                "AWS_SECRET_ACCESS_KEY": "",
                "AWS_EC2_METADATA_DISABLED": "true",
                "HOME": "/none",
            },
            "no credentials were found",
        ),
    ],
)
def test_a_bucket_that_cannot_be_read_ends_the_start_with_one_line(put, changes, words):
    command = [sys.executable, "-m", "normfold", "serve", "--listen", "127.0.0.1:0", "--workers", "1", "--repository"]
    done = subprocess.run(
        [*command, "s3://none-such/models"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **changes},
        check=False,
    )
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Error: repository s3://none-such/models cannot be read:")
    assert words in error
    assert "Traceback" not in done.stderr
