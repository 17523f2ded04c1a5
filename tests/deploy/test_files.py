"""The files of ``deploy/``: valid by published schemas, and true about this server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from normfold.cli.environment import variables
from normfold.cli.serve import serve
from normfold.protos import metrics as mx
from normfold.serving.errors import Status
from normfold.serving.metrics import exposition
from normfold.serving.scheduling.statistics import RequestTiming, Statistics
from normfold.serving.service.http import LOOP_SECONDS
from normfold.serving.settings import ServerConfig

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PAGE = (ROOT / "docs/deploying.md").read_text(encoding="utf-8")
#: The options of ``normfold serve``.
OPTIONS = {name for option in serve.params for name in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.name)
def test_manifests_of_kubernetes_are_valid(file):
    for document in yaml.safe_load_all(file.read_text()):
        kubernetes_validate.validate(document, "1.30", strict=True)


def test_a_manifest_that_is_wrong_would_be_found():
    document = yaml.safe_load((DEPLOY / "kubernetes/deployment.yaml").read_text())
    document["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["prot"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.30", strict=True)


def test_the_containers_of_kserve_s_runtime_are_containers_of_kubernetes():
    """KServe's own schema holds a Kubernetes container, which is what can be wrong; the rest is checked by name."""
    runtime = yaml.safe_load((DEPLOY / "kserve/runtime.yaml").read_text())
    assert (runtime["apiVersion"], runtime["kind"]) == ("serving.kserve.io/v1alpha1", "ServingRuntime")
    assert set(runtime["spec"]) == {"supportedModelFormats", "protocolVersions", "containers"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": runtime["spec"]["containers"]},
    }
    kubernetes_validate.validate(pod, "1.30", strict=True)
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert container["ports"][0]["name"] == "h2c"
    service = yaml.safe_load((DEPLOY / "kserve/service.yaml").read_text())
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]


def _option(arguments: list[str], name: str, default: float = 0.0) -> float:
    """The number that the option ``name`` has in ``arguments``."""
    given = dict(argument.split("=", 1) for argument in arguments if argument.startswith(f"{name}="))
    return float(given.get(name, default))


@pytest.mark.parametrize("file", ["kubernetes/deployment.yaml", "kserve/runtime.yaml"])
def test_only_readiness_depends_on_a_model_and_no_probe_needs_tls_or_a_token(file):
    document = yaml.safe_load((DEPLOY / file).read_text())
    (container,) = document["spec"].get("template", document)["spec"]["containers"]
    (listen,) = [one for one in container["args"] if one.startswith("--metrics-listen=")]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    asked = {}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        get = container[probe]["httpGet"]
        asked[probe] = get["path"]
        assert str(ports.get(get["port"], get["port"])) == listen.rpartition(":")[2]
        assert container[probe]["timeoutSeconds"] > LOOP_SECONDS
    assert asked == {"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > 2 * ServerConfig.load_seconds


def test_pods_have_time_to_answer_what_is_under_way():
    deployment = yaml.safe_load((DEPLOY / "kubernetes/deployment.yaml").read_text())["spec"]["template"]["spec"]
    runtime = yaml.safe_load((DEPLOY / "kserve/runtime.yaml").read_text())["spec"]
    service = yaml.safe_load((DEPLOY / "kserve/service.yaml").read_text())
    for container, pod in (
        (deployment["containers"][0], deployment),
        (runtime["containers"][0], service["spec"]["predictor"]),
    ):
        needed = _option(container["args"], "--drain-delay") + _option(container["args"], "--grace-seconds", 30)
        needed += container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod["terminationGracePeriodSeconds"] > needed + 5
    # Knative refuses the field.
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "RawDeployment"
    assert _option(deployment["containers"][0]["args"], "--max-connection-age") > 0, "new pods get no requests"


def test_the_health_check_of_the_image_asks_its_metrics_port():
    docker = (DEPLOY / "Dockerfile").read_text()
    command = json.loads(re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", docker, re.MULTILINE)[1])
    options = _servers()["Dockerfile"]
    port = options[options.index("--metrics-listen") + 1].rpartition(":")[2]
    assert command == ["normfold", "healthcheck", "--address", f"http://127.0.0.1:{port}"]
    assert ServerConfig(Path("models"), listen="0.0.0.0:8001", insecure=True).metrics == f"127.0.0.1:{port}"


def test_the_volumes_of_the_page_fit_into_the_deployment():
    deployment = yaml.safe_load((DEPLOY / "kubernetes/deployment.yaml").read_text())
    (added,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.split("\n## TLS and tokens\n")[1], re.MULTILINE | re.DOTALL)
    mounts, volumes = added.split("      volumes:\n")
    pod = deployment["spec"]["template"]["spec"]
    pod["containers"][0]["volumeMounts"] += yaml.safe_load(mounts)["volumeMounts"]
    pod["volumes"] += yaml.safe_load(volumes)
    kubernetes_validate.validate(deployment, "1.30", strict=True)
    assert {one["name"] for one in pod["containers"][0]["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


def _servers() -> dict[str, list[str]]:
    """The arguments of the server in each file."""
    deployment = yaml.safe_load((DEPLOY / "kubernetes/deployment.yaml").read_text())
    runtime = yaml.safe_load((DEPLOY / "kserve/runtime.yaml").read_text())
    docker = (DEPLOY / "Dockerfile").read_text()
    unit = (DEPLOY / "systemd/normfold.service").read_text()
    entrypoint, command = re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", docker, re.MULTILINE)
    (container,) = runtime["spec"]["containers"]
    return {
        "Dockerfile": json.loads(entrypoint) + json.loads(command),
        "systemd": re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1].split(),
        "kubernetes": deployment["spec"]["template"]["spec"]["containers"][0]["args"],
        "kserve": [*container["command"], *container["args"]],
    }


def test_every_option_is_one_of_this_server():
    given = {
        argument.partition("=")[0]
        for arguments in _servers().values()
        for argument in arguments
        if argument.startswith("--")
    }
    assert given >= {"--repository", "--listen", "--metrics-listen"}
    assert given <= OPTIONS


def _control(options: list[str]) -> str:
    """The model control that a server with these options has."""
    words = [word for option in options for word in option.split("=", 1)]
    given = {name: words[words.index(name) + 1] for name in ("--listen", "--model-control") if name in words}
    listen, control = given.get("--listen", ServerConfig.listen), given.get("--model-control")
    config = ServerConfig(Path("models"), listen=listen, insecure="--insecure" in words, model_control=control)
    return "explicit" if config.clients_control else control or "none"


def test_each_server_takes_a_new_version_in_the_way_that_the_manual_says():
    section = PAGE.split("\n## A new version, and back\n")[1]
    rows = dict(re.findall(r"^\| `(\w+)/?` \| `(\w+)`", section, re.MULTILINE))
    assert rows == {"Dockerfile": "poll", "kubernetes": "poll", "systemd": "explicit", "kserve": "none"}
    assert {file: _control(arguments) for file, arguments in _servers().items()} == rows
    assert "ExecReload=/bin/kill -HUP $MAINPID\n" in (DEPLOY / "systemd/normfold.service").read_text()


def test_the_printed_docker_run_publishes_every_port_of_the_image():
    docker = (DEPLOY / "Dockerfile").read_text()
    ports = re.search(r"^EXPOSE (.*)$", docker, re.MULTILINE)[1].split()
    for text in (docker, PAGE):
        assert all(f"-p 127.0.0.1:{port}:{port}" in text for port in ports)


def test_the_image_has_what_its_stages_copy():
    docker = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER \d+$", docker, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().split()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in kept)
    linked = {path.resolve().name for path in (ROOT / "src/normfold").iterdir() if path.is_symlink()}
    assert linked <= kept, "a folder of the package is not in the image"


#: What the page has for `systemctl edit`.
DROP_INS = re.findall(r"^```ini\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def _verified(folder: Path, drop_in: str) -> str:
    """What systemd-analyze says of the unit with ``drop_in``."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: apt-get install systemd")
    text = (DEPLOY / "systemd/normfold.service").read_text()
    unit = folder / "normfold.service"
    unit.write_text(text.replace("/opt/normfold/bin/normfold", "/bin/true"))
    (folder / "normfold.service.d").mkdir()
    (folder / "normfold.service.d/override.conf").write_text(drop_in.replace("/opt/normfold/bin/normfold", "/bin/true"))
    return subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60).stderr


@pytest.mark.parametrize("drop_in", ["", *DROP_INS], ids=["none", "variables", "command"])
def test_systemd_finds_nothing_wrong(tmp_path, drop_in):
    said = _verified(tmp_path, drop_in)
    assert "normfold.service" not in said
    assert "override.conf" not in said


def test_systemd_would_find_a_second_command_and_a_mistyped_line(tmp_path):
    said = _verified(tmp_path, DROP_INS[1].replace("ExecStart=\n", "").replace("LoadCredential=tls.key", "LoadCred=x"))
    assert "more than one ExecStart=" in said
    assert "Unknown key" in said


def test_the_lines_for_systemctl_edit_are_options_of_this_server():
    environment, command = DROP_INS
    known = variables("serve", serve)
    named = re.findall(r"(NORMFOLD_\w+)=", environment + (DEPLOY / "systemd/normfold.service").read_text())
    assert set(named) - {"NORMFOLD_CACHE_DIR"}
    assert set(named) <= {*known, "NORMFOLD_CACHE_DIR"}
    assert set(re.findall(r"--[\w-]+", command)) <= OPTIONS
    loaded = set(re.findall(r"^LoadCredential=([\w.]+):", command, re.MULTILINE))
    assert set(re.findall(r"%d/([\w.]+)", command)) == loaded == {"tls.crt", "tls.key", "tokens"}


def test_the_dashboard_asks_for_metrics_that_exist():
    counted = Statistics()
    counted.ran(1, 0, 1000, 0)
    counted.answered(1, 2000, RequestTiming(1, 1, 1000, 1))
    counted.failed(1, Status.UNAVAILABLE)
    snapshot = mx.SnapshotResponse(
        models=[counted.snapshot("m", "1")],
        failed_calls=[mx.FailedCalls(method="a/B", status="INTERNAL", count=1)],
        processes=[mx.ProcessSnapshot(worker=1)],
    )
    text = exposition.text(snapshot, True).decode()
    there = {re.match(r"[a-z_]+", line)[0] for line in text.splitlines() if not line.startswith("#")}
    dashboard = json.loads((DEPLOY / "grafana/normfold.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [
        variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"
    ]
    asked = {name for query in queries for name in re.findall(r"\b(?:nv|normfold)_[a-z_]+", query)}
    assert len(asked) > 10
    assert asked <= there
    autoscaler = (DEPLOY / "kubernetes/autoscaler.yaml").read_text()
    assert set(re.findall(r"\bnv_[a-z_]+", autoscaler)) <= there
