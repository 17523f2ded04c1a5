"""The options of ``normfold serve`` that do nothing without another one."""

from __future__ import annotations

from normfold.cli.needs import Need

#: ServerConfig itself refuses some options without others: --memory-budget, --tls-…, --health-without-token.
NEEDS = (
    Need(
        ("poll_seconds",),
        "model_control",
        lambda values: values["model_control"] == "poll",
        "without --model-control poll",
    ),
    Need(
        ("max_connections", "max_connection_bytes", "max_held_bytes", "stall_seconds"),
        "frontend",
        lambda values: values["frontend"] == "http2",
        "with --frontend grpcio, which has no such limit",
    ),
    Need(
        ("max_connection_age_grace_seconds",),
        "max_connection_age_seconds",
        lambda values: values["max_connection_age_seconds"] > 0,
        "without --max-connection-age SECONDS",
    ),
    Need(
        ("keepalive_timeout_seconds",),
        "keepalive_seconds",
        lambda values: values["keepalive_seconds"] > 0,
        "with --keepalive-seconds 0: no client is asked",
    ),
    Need(
        ("load_bytes",),
        "load_seconds",
        lambda values: values["load_seconds"] > 0,
        "with --load-seconds 0: no load is tried first",
    ),
    Need(
        ("worker_seconds",),
        "workers",
        lambda values: values["workers"] != 1,
        "with --workers 1: nothing watches a single one",
    ),
)
