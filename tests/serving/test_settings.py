"""One config from the command line to the worker: every option is a field, and no value is lost on the way."""

from __future__ import annotations

import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click
import pytest

from normfold.cli.serve import NO_FIELDS, serve
from normfold.serving.errors import StartError
from normfold.serving.process.log_lines import LEVELS
from normfold.serving.setting_bounds import BOUNDS
from normfold.serving.settings import CHOICES, NOT_OPTIONS, ServerConfig
from normfold.serving.workers import supervisor
from normfold.serving.workers.supervisor import Supervisor

DEFAULT = ServerConfig(Path("r"))
#: A value for each field that differs from its default.
OTHER = ServerConfig(
    Path("models/ü"),
    remote="s3://bucket/models",
    listen="0.0.0.0:9",
    metrics_listen="0.0.0.0:10",
    frontend="grpcio",
    tls_cert=Path("c.pem"),
    tls_key=Path("k.pem"),
    tls_client_ca=Path("a.pem"),
    insecure=True,
    tokens=Path("tokens"),
    health_without_token=True,
    reflection=False,
    require_manifest=True,
    require_signature=Path("s.pub"),
    device="cuda:1",
    threads=3,
    tune=False,
    cpus=2,
    model_name="m",
    server_name="s",
    strict_readiness=False,
    model_control="poll",
    poll_seconds=3.0,
    shared_memory=False,
    load="lazily",
    memory_budget_bytes=2 << 30,
    load_models=("a", "b"),
    load_seconds=5.0,
    load_bytes=7 << 20,
    allow_unproved_sizes=True,
    max_message_bytes=1 << 20,
    max_connections=15,
    max_connection_bytes=2 << 20,
    max_held_bytes=3 << 20,
    stall_seconds=4.0,
    max_connection_age_seconds=5.0,
    max_connection_age_grace_seconds=6.0,
    max_connection_idle_seconds=7.0,
    keepalive_seconds=8.0,
    keepalive_timeout_seconds=9.0,
    worker_seconds=6.0,
    max_queue_seconds=0.25,
    max_queue_requests=6,
    max_queue_bytes=4 << 20,
    memory_limit_bytes=100 << 20,
    trace_file=Path("t.json"),
    grace_seconds=1.0,
    drain_delay_seconds=2.0,
    log_level="debug",
    log_format="json",
    access_log="errors",
)
#: The command line for it, an option a line.
ARGUMENTS = """
    -r models/ü
    --listen 0.0.0.0:9
    --metrics-listen 0.0.0.0:10
    --tls-cert c.pem
    --tls-key k.pem
    --tls-client-ca a.pem
    --insecure
    --tokens tokens
    --health-without-token
    --no-reflection
    --require-manifest
    --require-signature s.pub
    --frontend grpcio
    --device cuda:1
    --threads 3
    --no-tune
    --name m
    --server-name s
    --no-strict-readiness
    --model-control poll
    --poll-seconds 3
    --shared-memory off
    --load lazily
    --memory-budget 2GiB
    --load-model a
    --load-model b
    --load-seconds 5
    --load-mib 7
    --allow-unproved-sizes
    --max-message-mib 1
    --max-connections 15
    --max-connection-mib 2
    --max-held-mib 3
    --stall-seconds 4
    --max-connection-age 5
    --max-connection-age-grace 6
    --max-connection-idle 7
    --keepalive-seconds 8
    --keepalive-timeout 9
    --worker-seconds 6
    --max-queue-seconds 0.25
    --max-queue-requests 6
    --max-queue-mib 4
    --memory-limit 100
    --trace-file t.json
    --grace-seconds 1
    --drain-delay 2
    --log-level debug
    --log-format json
    --access-log errors
"""

FIELDS = [field.name for field in fields(ServerConfig)]


def config(*arguments: str) -> ServerConfig:
    """The config that ``normfold serve`` makes of its arguments."""
    options = serve.make_context("serve", list(arguments)).params
    del options["workers"]
    return ServerConfig.from_options(options)


def test_every_option_is_a_field_and_every_field_an_option():
    options = {parameter.name for parameter in serve.params if isinstance(parameter, click.Option)} - {"help"}
    assert options - set(FIELDS) == set(NO_FIELDS)
    assert set(FIELDS) - options == set(NOT_OPTIONS)


def test_an_option_that_is_not_given_is_the_fields_default(monkeypatch):
    monkeypatch.delenv("NORMFOLD_SERVE_LISTEN")
    assert config("-r", "r") == DEFAULT


def test_every_option_arrives_in_its_field():
    assert config(*ARGUMENTS.split()) == replace(OTHER, cpus=0, remote="")


@pytest.mark.parametrize("name", FIELDS)
def test_the_sample_differs_from_the_default_in_every_field(name):
    assert getattr(OTHER, name) != getattr(DEFAULT, name)


@pytest.mark.parametrize("sample", [DEFAULT, OTHER])
def test_a_worker_gets_the_config_that_the_supervisor_has(sample):
    assert ServerConfig.from_json(sample.to_json()) == sample


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"threads": 0', '"threads": "0"', "ServerConfig.threads must be int, got str"),
        ('"threads": 0', '"threads": true', "ServerConfig.threads must be int, got bool"),
        ('"load_models": []', '"load_models": [1]', "ServerConfig.load_models must be str, got int"),
        ('"threads": 0', '"thread": 0', r"unknown fields \['thread'\] and lacks \['threads'\]"),
    ],
)
def test_json_with_another_field_or_type_is_refused(old, new, words):
    text = DEFAULT.to_json()
    assert old in text
    with pytest.raises(ValueError, match=words):
        ServerConfig.from_json(text.replace(old, new))


def test_json_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match="must be an object of JSON"):
        ServerConfig.from_json("[]")


def test_a_value_that_no_server_can_run_with_is_refused_from_json_too():
    with pytest.raises(StartError, match=r"^--threads 2000: expected at least 0, at most 1024$"):
        ServerConfig.from_json(DEFAULT.to_json().replace('"threads": 0', '"threads": 2000'))


def test_an_unknown_log_level_is_refused():
    with pytest.raises(StartError, match=r"^--log-level 'loud' is not one of debug, info, warning, error"):
        ServerConfig(Path("r"), log_level="loud")


def test_an_unknown_log_format_is_refused():
    with pytest.raises(StartError, match=r"^--log-format 'xml' is not one of text, json, auto"):
        ServerConfig(Path("r"), log_format="xml")


def test_an_unknown_access_log_is_refused():
    with pytest.raises(StartError, match=r"^--access-log 'some' is not one of off, errors, all"):
        ServerConfig(Path("r"), access_log="some")


def test_the_log_levels_of_the_command_line_are_the_servers():
    (option,) = (parameter for parameter in serve.params if parameter.name == "log_level")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == LEVELS


TLS = {"tls_cert": Path("c.pem"), "tls_key": Path("k.pem")}


@pytest.mark.parametrize("listen", ["0.0.0.0:8001", "[::]:8001", "192.168.0.1:8001", "example.org:8001"])
def test_other_hosts_may_reach_a_server_only_with_tls_or_insecure(listen):
    with pytest.raises(StartError, match=f"--listen {re.escape(listen)}: other hosts .* --tls-cert FILE .* --insecure"):
        ServerConfig(Path("r"), listen=listen)
    assert not ServerConfig(Path("r"), listen=listen, insecure=True).local
    assert not ServerConfig(Path("r"), listen=listen, **TLS).local


def test_other_hosts_may_read_the_metrics_only_with_insecure():
    options = {"listen": "0.0.0.0:1", "metrics_listen": "0.0.0.0:2"}
    with pytest.raises(
        StartError, match=r"--metrics-listen 0\.0\.0\.0:2: other hosts .* neither TLS nor tokens: .* --insecure"
    ):
        ServerConfig(Path("r"), **options, **TLS)
    assert ServerConfig(Path("r"), **options, **TLS, insecure=True).metrics == "0.0.0.0:2"
    assert ServerConfig(Path("r"), listen="0.0.0.0:1", **TLS).metrics == "127.0.0.1:8002"


@pytest.mark.parametrize("listen", ["127.0.0.1:8001", "localhost:1", "[::1]:1", "unix:/tmp/s"])
def test_a_server_for_this_host_needs_no_tls(listen):
    assert ServerConfig(Path("r"), listen=listen).local


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tls_cert": Path("c.pem")}, "--tls-key FILE is missing"),
        ({"tls_key": Path("k.pem")}, "--tls-cert FILE is missing"),
        ({"tls_client_ca": Path("a.pem")}, "--tls-client-ca needs --tls-cert FILE and --tls-key FILE"),
        ({"health_without_token": True}, "--health-without-token needs --tokens FILE"),
    ],
)
def test_options_of_access_that_do_not_fit_together_are_refused(options, words):
    with pytest.raises(StartError, match=words):
        ServerConfig(Path("r"), **options)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ({"max_connection_age_seconds": -1.0}, "--max-connection-age -1: expected at least 0, at most 2000000 seconds"),
        ({"max_connection_idle_seconds": 3e6}, "--max-connection-idle .*: expected at least 0, at most 2000000"),
        ({"keepalive_seconds": float("nan")}, "--keepalive-seconds nan: expected at least 0"),
        ({"max_connection_age_grace_seconds": 0.0}, "--max-connection-age-grace 0: expected more than 0, at most"),
        ({"keepalive_timeout_seconds": 0.0}, "--keepalive-timeout 0: expected more than 0"),
        ({"grace_seconds": -1.0}, "--grace-seconds -1: expected at least 0 seconds"),
        ({"worker_seconds": 1.0}, "--worker-seconds 1: expected at least 2 seconds"),
    ],
)
def test_times_of_a_connection_that_cannot_be_are_refused(times, words):
    with pytest.raises(StartError, match=words):
        ServerConfig(Path("r"), **times)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"load": "never"}, "--load 'never' is not one of eagerly, lazily"),
        ({"memory_budget_bytes": 1 << 30}, "--memory-budget needs --load lazily"),
        ({"load": "lazily", "memory_budget_bytes": 1 << 20}, "^--memory-budget 1MiB: expected at least 64 MiB, or 0$"),
    ],
)
def test_a_budget_needs_lazy_models_and_room(options, words):
    with pytest.raises(StartError, match=words):
        ServerConfig(Path("r"), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory_limit_bytes": 1 << 20}, "--memory-limit 1MiB: expected at least 64 MiB, or 0"),
        ({"max_message_bytes": 1 << 31}, "--max-message-mib 2048: expected at least 1, at most 2047 MiB"),
        ({"max_queue_bytes": 1 << 19}, "--max-queue-mib 0.5: expected at least 1 MiB"),
        ({"load_bytes": -1 << 20}, "--load-mib -1: expected at least 0 MiB"),
    ],
)
def test_a_size_is_refused_in_the_unit_of_its_option(options, words):
    with pytest.raises(StartError, match=f"^{words}$"):
        ServerConfig(Path("r"), **options)


def test_every_bound_names_an_option_of_its_field():
    names = {parameter.name: parameter.opts for parameter in serve.params}
    assert all(bound.option in names[bound.field] for bound in BOUNDS)
    assert all(option in names[field] for option, field, _ in CHOICES)


@pytest.mark.parametrize("option", ["--memory-limit", "--memory-budget"])
def test_a_size_is_written_with_its_unit_or_in_mebibytes(option):
    """One of the two options took a number of MiB alone, the other a number with its unit alone."""
    options = ("--repository", "r", "--load", "lazily", option)
    sizes = {config(*options, text) for text in ("2048", "2048MiB", "2GiB", "2 GiB")}
    assert len(sizes) == 1
    assert {one.memory_limit_bytes or one.memory_budget_bytes for one in sizes} == {2 << 30}
    for text in ("2GB", "GiB", "-1GiB", "-1", "1.5", "99999999999GiB", ""):
        with pytest.raises(click.BadParameter, match="write it as 2GiB, 500MiB, or 500 for MiB"):
            config(*options, text)


def test_each_limit_of_clients_and_of_the_queue_is_that_of_its_option():
    clients, queue = OTHER.client_limits, OTHER.queue_limits
    assert asdict(clients) == {
        "max_connections": 15,
        "max_connection_bytes": 2 << 20,
        "max_held_bytes": 3 << 20,
        "stall_seconds": 4.0,
        "max_age_seconds": 5.0,
        "age_grace_seconds": 6.0,
        "max_idle_seconds": 7.0,
        "keepalive_seconds": 8.0,
        "keepalive_timeout_seconds": 9.0,
    }
    assert asdict(queue) == {"seconds": 0.25, "requests": 6, "bytes": 4 << 20}
    for limits in (clients, queue):  # two equal ones could change places
        assert len(set(asdict(limits).values())) == len(fields(limits))


def config_of_a_worker(workers: int, **options: Any) -> ServerConfig:
    made = Supervisor(ServerConfig(Path("r"), listen="127.0.0.1:0", **options), workers)
    made._port.release()
    return made._config


def test_workers_share_the_budget_and_the_memory():
    options = {"load": "lazily", "memory_budget_bytes": 1 << 30, "memory_limit_bytes": 2 << 30}
    for workers, share in ((1, 1), (2, 2), (4, 4), (64, 16)):  # none has less than the least that a server may have
        worker = config_of_a_worker(workers, **options)
        assert worker.memory_budget_bytes == (1 << 30) // share, workers
        assert worker.memory_limit_bytes == (2 << 30) // min(workers, 32), workers


def test_workers_share_the_memory_of_the_machine_where_nobody_limits_it(monkeypatch):
    shares = []

    def default(workers=1):
        shares.append(workers)
        return (8 << 30) // workers

    monkeypatch.setattr(supervisor, "default_limit_bytes", default)
    assert config_of_a_worker(4).memory_limit_bytes == 2 << 30
    assert config_of_a_worker(4).memory_budget_bytes == 0
    assert set(shares) == {4}


@pytest.mark.parametrize(
    "name",
    [
        "max_connections",
        "max_held_bytes",
        "max_queue_requests",
        "max_queue_bytes",
        "memory_limit_bytes",
        "memory_budget_bytes",
    ],
)
def test_help_and_manual_say_whether_a_limit_holds_in_each_worker_or_for_all_together(name, root):
    given = ServerConfig(
        Path("r"), "127.0.0.1:0", load="lazily", memory_budget_bytes=1 << 30, memory_limit_bytes=1 << 30
    )
    made = Supervisor(given, 4)
    for port in made._ports:
        port.release()
    (option,) = [each for each in serve.params if each.name == name]
    divided = getattr(made._config, name) * 4 == getattr(given, name)
    assert ("all workers" if divided else "each worker") in option.help
    rows = (root / "docs" / "serving.md").read_text(encoding="utf-8").splitlines()
    (row,) = [
        row
        for row in rows
        if row.startswith("| `") and "worker" in row and row.count("`--") > 1 and option.opts[0] in row
    ]
    assert ("for all workers together" if divided else "in each worker") in row
