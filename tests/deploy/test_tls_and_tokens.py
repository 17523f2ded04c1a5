"""The sets of options for TLS and for tokens in docs/deploying.md, each with a real server; and what probes ask it."""

from __future__ import annotations

import re
import shlex
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from tests.e2e.conftest import SCALE, Running, running, write_model
from tests.e2e.conftest import repository as repository
from tests.waiting import wait_until

from normfold.cli.main import main
from normfold.serving.access.scopes import Scope
from normfold.serving.access.tokens import line
from normfold.serving.client.client import Client, ClientError
from normfold.serving.client.connection import ClientTls

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/deploying.md").read_text(encoding="utf-8").replace("\\\n", "")
SECTION = PAGE.split("\n## TLS and tokens\n")[1].split("\n## ")[0]
SETS = [shlex.split(options) for options in re.findall(r"^```\n(--.*)\n```", SECTION, re.MULTILINE)]
TOKEN = "a-token"
X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory, certificate) -> Path:
    """The folders /tls and /tokens as a Secret of Kubernetes is mounted: links to links."""
    root = tmp_path_factory.mktemp("secrets")
    for folder, content in {
        "tls": {"tls.crt": certificate.cert.read_text(), "tls.key": certificate.key.read_text()},
        "tokens": {"tokens": line("client", {Scope.INFER, Scope.READ}, [], TOKEN) + "\n"},
    }.items():
        (root / folder / "..2026").mkdir(parents=True)
        (root / folder / "..data").symlink_to("..2026")
        for name, text in content.items():
            (root / folder / "..2026" / name).write_text(text)
            (root / folder / name).symlink_to(f"..data/{name}")
    return root


def here(options: list[str], files: Path) -> list[str]:
    """``options`` with the files of this test, and with free ports."""
    return [
        re.sub(r"=(/t)", rf"={files}\1", option).replace(":8001", ":0").replace(":8002", ":0") for option in options
    ]


def metrics(server: Running) -> str:
    return f"http://127.0.0.1:{re.search(r'metrics on http://0.0.0.0:([0-9]+)/', chr(10).join(server.lines))[1]}"


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_has_a_set_for_tls_for_tokens_and_for_both():
    words = [{option.partition("=")[0] for option in options} for options in SETS]
    assert [("--tls-key" in one, "--tokens" in one) for one in words] == [(True, False), (False, True), (True, True)]
    (docker,) = re.findall(r"^docker run .* normfold +(--.*)$", SECTION, re.MULTILINE)
    assert shlex.split(docker) == SETS[2]


@pytest.mark.parametrize("options", SETS, ids=["tls", "tokens", "both"])
def test_each_set_guards_grpc_and_lets_probes_ask(repository, files, certificate, options):
    with running(repository, *here(options, files)) as server:
        done = CliRunner().invoke(main, ["healthcheck", "--address", metrics(server)])
        assert (done.exit_code, done.output) == (0, "the server is ready\n")
        address = server.address.replace("0.0.0.0", "127.0.0.1")
        with_tls, with_tokens = (any(name in option for option in options) for name in ("--tls-key", "--tokens"))
        tls = ClientTls(certificate.ca) if with_tls else None
        with Client(address, tls=tls, token=TOKEN) as client:
            assert client.infer("nb", X)["y"].tolist() == [[2, 4, 6, 8]]
        if with_tls:
            with Client(address, token=TOKEN, timeout=5) as client, pytest.raises(ClientError, match="TLS"):
                client.is_ready()
        if with_tokens:
            with Client(address, tls=tls) as client, pytest.raises(ClientError, match="UNAUTHENTICATED"):
                client.is_ready()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_model_that_does_not_load_makes_a_pod_not_ready_but_does_not_restart_it(tmp_path, workers):
    deployment = yaml.safe_load((ROOT / "deploy/kubernetes/deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    write_model(tmp_path / "good", SCALE.replace("FACTOR", "2.0"))
    (tmp_path / "bad/1").mkdir(parents=True)
    (tmp_path / "bad/1/model.onnx").write_bytes(b"nothing")
    options = [*here(container["args"], tmp_path), "--workers", workers, "--drain-delay", "0", "--log-format", "text"]
    with running(tmp_path, *options, ready=False) as server:
        url = metrics(server)
        asked = {name: status(url + container[f"{name}Probe"]["httpGet"]["path"]) for name in ("startup", "liveness")}
        assert asked == {"startup": 200, "liveness": 200}
        ready = url + container["readinessProbe"]["httpGet"]["path"]
        assert status(ready) == 503
        write_model(tmp_path / "bad", SCALE.replace("FACTOR", "2.0"), 2)
        wait_until(lambda: status(ready) == 200, seconds=60)
