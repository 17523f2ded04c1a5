"""How a server runs: one dataclass, from the command line to every worker.

To add an option of ``normfold serve``, add a field here and a click option of the same name in ``cli/serve.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from normfold.serving.errors import StartError
from normfold.serving.frontends import FRONTENDS
from normfold.serving.frontends.limits import ClientLimits
from normfold.serving.process import address, typed_json
from normfold.serving.process.log_lines import ACCESS_LOGS, FORMS, LEVELS
from normfold.serving.scheduling.admission import QueueLimits
from normfold.serving.setting_bounds import BOUNDS

#: Where metrics are if nobody says otherwise, as with Triton.
METRICS_LISTEN = "127.0.0.1:8002"

#: Who decides which models are in service: clients, nobody after the start, or the files of the repository.
CONTROLS = ("explicit", "none", "poll")

#: When models are loaded.
LOADS = ("eagerly", "lazily")

#: The ``metrics_listen`` of a server without an HTTP port.
OFF = "off"

#: The option of each setting that is one of a few words.
CHOICES = (
    ("--frontend", "frontend", FRONTENDS),
    ("--load", "load", LOADS),
    ("--model-control", "model_control", CONTROLS),
    ("--log-level", "log_level", LEVELS),
    ("--log-format", "log_format", FORMS),
    ("--access-log", "access_log", ACCESS_LOGS),
)


@dataclass(frozen=True)
class ServerConfig:
    """The settings of one server; with several workers each of them has these."""

    #: A folder of models, one model's folder, or one .onnx file; with ``remote``, its image on this machine.
    repository: Path
    #: The URL of the repository on object storage; "": it is on this machine.
    remote: str = ""
    #: "host:port", port 0 for any free one, or "unix:/path".
    listen: str = "127.0.0.1:8001"
    #: "host:port" of the HTTP port for metrics and health, or "off"; None: METRICS_LISTEN where it is free, else off.
    metrics_listen: str | None = None
    #: The transport, one of FRONTENDS.
    frontend: str = FRONTENDS[0]
    #: Certificate and key of the server, in PEM; None: no TLS.
    tls_cert: Path | None = None
    tls_key: Path | None = None
    #: The certificates that sign those of clients; None: clients need no certificate.
    tls_client_ca: Path | None = None
    #: Whether other hosts may reach the server without TLS.
    insecure: bool = False
    #: The file of tokens; None: everybody may do everything that the other settings allow.
    tokens: Path | None = None
    #: Whether health and readiness are answered without a token.
    health_without_token: bool = False
    #: Whether clients may ask for the procedures of the server and their messages.
    reflection: bool = True
    #: "cpu", "cuda", "cuda:N", "tensorrt", "tensorrt:N" or "auto".
    device: str = "cpu"
    #: Threads of one run, at most 1024; 0: as measured, or without ``tune`` one for small models, all CPUs for others.
    threads: int = 0
    #: Measure how many threads a run should have where nobody sets it, and remember the result.
    tune: bool = True
    #: CPUs to use; 0: as many as this process may use.
    cpus: int = 0
    #: The name of a single model; None: that of its folder or file.
    model_name: str | None = None
    #: The name of the server in ServerMetadata.
    server_name: str = "normfold"
    #: Whether the server is not ready while a model that should be in service has no version that answers.
    strict_readiness: bool = True
    #: Who changes what is in service, one of CONTROLS; None: clients, if the server listens on this host alone.
    model_control: str | None = None
    #: The time between two looks at the repository with ``model_control`` "poll", in seconds.
    poll_seconds: float = 5.0
    #: Whether clients may use POSIX shared memory; None: only if the server listens on this host alone.
    shared_memory: bool | None = None
    #: When models are loaded: "eagerly", at the start, or "lazily", by their first request.
    load: str = LOADS[0]
    #: With ``load`` "lazily": memory of all loaded models, at least 64 MiB; 0: no limit. More unloads idle ones.
    memory_budget_bytes: int = 0
    #: Models to load at the start; empty: all.
    load_models: tuple[str, ...] = ()
    #: Longest time that a model may take to load and to warm up, in seconds; 0: no limit, and no trial of a load.
    load_seconds: float = 120.0
    #: Memory that a load may take, in bytes; 0: 2 GiB and 8 times the size of the model's files.
    load_bytes: int = 0
    #: Whether requests of sizes that a model's file was not proved for are answered, too.
    allow_unproved_sizes: bool = False
    #: Whether only versions with a manifest are served.
    require_manifest: bool = False
    #: The public key (Ed25519, PEM) that must have signed every version; None: nobody need sign.
    require_signature: Path | None = None
    #: Largest request in bytes; at least 1 MiB.
    max_message_bytes: int = 256 << 20
    #: Connections of each worker, at least 1; with ``frontend`` "http2", like the next three.
    max_connections: int = 4096
    #: Bytes of unfinished requests and of answers that the client has not taken, for one connection; at least 1 MiB.
    max_connection_bytes: int = 256 << 20
    #: The same for all connections of each worker; at least 1 MiB.
    max_held_bytes: int = 1 << 30
    #: Time without progress after which an unfinished request or an answer that is not taken is given up, in seconds.
    stall_seconds: float = 60.0
    #: Age of a connection, 10 % more or less, at which its client is asked to make another, in seconds; 0: any ...
    max_connection_age_seconds: float = 0.0
    #: ... and the time for its calls from then on.
    max_connection_age_grace_seconds: float = 30.0
    #: Time without a call after which the client of a connection is asked to leave, in seconds; 0: never.
    max_connection_idle_seconds: float = 0.0
    #: Silence of a client after which it is asked whether it is there, in seconds; 0: never ...
    keepalive_seconds: float = 60.0
    #: ... and the time for its answer.
    keepalive_timeout_seconds: float = 20.0
    #: Longest time that a worker may not answer its supervisor before it is replaced, in seconds; at least 2.
    worker_seconds: float = 30.0
    #: The longest time that a request should wait for its model, in seconds; a longer queue is refused.
    max_queue_seconds: float = 0.5
    #: Requests under way in each worker, at least 1; a model or a connection may have as many as are left free.
    max_queue_requests: int = 8192
    #: Bytes of these requests, in each worker; at least 1 MiB.
    max_queue_bytes: int = 512 << 20
    #: Memory of the whole server, at least 64 MiB; 0: four fifths of the machine's or the cgroup's.
    memory_limit_bytes: int = 0
    #: The file to write traces to; None: the log.
    trace_file: Path | None = None
    #: Longest wait for requests under way at the end, in seconds.
    grace_seconds: float = 30.0
    #: Time at the end in which new requests are still answered while health already reports NOT_SERVING, in seconds.
    drain_delay_seconds: float = 0.0
    #: The least important lines that the log has at the start: "debug", "info", "warning" or "error".
    log_level: str = "info"
    #: The form of the log: "text", "json", or "auto": text on a terminal, else JSON.
    log_format: str = "text"
    #: The calls with a line in the access log, one of ACCESS_LOGS: none, those that fail, or all.
    access_log: str = ACCESS_LOGS[0]

    def __post_init__(self) -> None:
        try:
            address.check(self.listen)
        except ValueError as error:
            raise StartError(str(error)) from None
        if self.metrics_listen not in (None, OFF):
            try:
                address.check_port(self.metrics_listen)
            except ValueError as error:
                raise StartError(f"{error}, nor {OFF!r}") from None
        self._check_access()
        for bound in BOUNDS:
            bound.check(getattr(self, bound.field))
        for option, field, words in CHOICES:
            value = getattr(self, field)
            if value not in words and not (field == "model_control" and value is None):
                raise StartError(f"{option} {value!r} is not one of {', '.join(words)}")
        if self.memory_budget_bytes and self.load != "lazily":
            raise StartError("--memory-budget needs --load lazily: only models that requests load can be unloaded")

    def _check_access(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "--tls-key" if self.tls_key is None else "--tls-cert"
            raise StartError(f"--tls-cert and --tls-key belong together; {missing} FILE is missing")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise StartError("--tls-client-ca needs --tls-cert FILE and --tls-key FILE, too")
        if self.health_without_token and self.tokens is None:
            raise StartError("--health-without-token needs --tokens FILE; without tokens everything is answered")
        if not (self.local or self.tls_cert is not None or self.insecure):
            raise StartError(
                f"--listen {self.listen}: other hosts can reach this address, and without TLS whoever is in between "
                "can read and change everything. Give --tls-cert FILE --tls-key FILE, or --insecure to accept that, "
                "such as in a container whose port is published on the loopback address only"
            )
        if self.metrics is not None and not (address.is_local(self.metrics) or self.insecure):
            raise StartError(
                f"--metrics-listen {self.metrics}: other hosts can reach this address, and the metrics have neither "
                "TLS nor tokens: everybody can read the models' names and counters. Give --insecure to accept that, or "
                "--metrics-listen 127.0.0.1:8002"
            )

    @property
    def client_limits(self) -> ClientLimits:
        """The limits of the resources that clients may hold, and for how long."""
        return ClientLimits(
            max_connections=self.max_connections,
            max_connection_bytes=self.max_connection_bytes,
            max_held_bytes=self.max_held_bytes,
            stall_seconds=self.stall_seconds,
            max_age_seconds=self.max_connection_age_seconds,
            age_grace_seconds=self.max_connection_age_grace_seconds,
            max_idle_seconds=self.max_connection_idle_seconds,
            keepalive_seconds=self.keepalive_seconds,
            keepalive_timeout_seconds=self.keepalive_timeout_seconds,
        )

    @property
    def queue_limits(self) -> QueueLimits:
        """The limits of the requests that may wait in one worker, and for how long."""
        return QueueLimits(seconds=self.max_queue_seconds, requests=self.max_queue_requests, bytes=self.max_queue_bytes)

    @property
    def clients_control(self) -> bool:
        """Whether clients may load and unload models."""
        return self.local if self.model_control is None else self.model_control == "explicit"

    @property
    def local(self) -> bool:
        """Whether only programs on this host can reach the server."""
        return address.is_local(self.listen)

    @property
    def metrics(self) -> str | None:
        """The "host:port" to try for metrics; None: none. With port 0 in ``listen``, only what was asked for."""
        if self.metrics_listen is None:
            anywhere = self.listen.startswith(address.UNIX) or self.listen.endswith(":0")
            return None if anywhere else METRICS_LISTEN
        return None if self.metrics_listen == OFF else self.metrics_listen

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> ServerConfig:
        """The config of a command line; fields that are no options have their defaults.

        Raises StartError for values that do not fit together, ValueError for an option that is no field or of another
        type.
        """
        defaults = {name: getattr(cls, name) for name in NOT_OPTIONS}
        return typed_json.from_values(cls, {**defaults, **options})

    def to_json(self) -> str:
        """All fields as JSON, for the command line of a worker."""
        return json.dumps(typed_json.to_values(self, []))

    @classmethod
    def from_json(cls, text: str) -> ServerConfig:
        """The config that ``to_json`` wrote. Raises ValueError when a field is missing, unknown or of another type."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("a ServerConfig must be an object of JSON")
        return typed_json.from_values(cls, values)


#: Fields that ``normfold serve`` has no option for, and the reason.
NOT_OPTIONS: Mapping[str, str] = {
    "remote": "--repository takes the URL, too",
    "cpus": "the supervisor shares the CPUs out among its workers; a single server takes all that it may use",
}
