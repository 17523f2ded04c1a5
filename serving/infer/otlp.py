"""Whether traces are wanted, by OpenTelemetry's environment variables, and where they go; imports nothing of it before.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normfold.serving.infer.spans import Exported

log = logging.getLogger(__name__)

#: The modules that send spans by OTLP, by the value of OTEL_EXPORTER_OTLP_PROTOCOL.
EXPORTERS = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an endpoint is set, and neither the SDK nor the exporter of traces is turned off."""
    endpoint = _of("ENDPOINT", environment)
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return bool(endpoint) and not disabled and environment.get("OTEL_TRACES_EXPORTER", "otlp").strip() == "otlp"


def destination(environment: Mapping[str, str] = os.environ) -> str:
    """Where spans go, as a person reads it; "" where none are sent. Passwords in the address are left out."""
    protocol = _of("PROTOCOL", environment) or "grpc"
    if not wanted(environment) or protocol not in EXPORTERS or not _is_installed(EXPORTERS[protocol]):
        return ""
    scheme, there, rest = _of("ENDPOINT", environment).rpartition("://")
    return f"{scheme}{there}{rest.rpartition('@')[2]} (OTLP, {protocol})"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def spans(environment: Mapping[str, str] = os.environ) -> Exported | None:
    """Makes and sends spans; None where no traces are wanted, or where the packages are missing (the log says so)."""
    if not wanted(environment):
        return None
    protocol = _of("PROTOCOL", environment) or "grpc"
    if protocol not in EXPORTERS:
        log.warning("no traces: OTEL_EXPORTER_OTLP_PROTOCOL is %r, not one of %s", protocol, ", ".join(EXPORTERS))
        return None
    try:
        exporter: Any = importlib.import_module(EXPORTERS[protocol])
        made = importlib.import_module("normfold.serving.infer.spans")
    except ImportError as error:
        needed = "normfold[otel]" if protocol == "grpc" else "normfold[otel] opentelemetry-exporter-otlp-proto-http"
        log.warning("no traces, though OTEL_EXPORTER_OTLP_ENDPOINT is set: %s; pip install %s", error, needed)
        return None
    exported: Exported = made.Exported(exporter.OTLPSpanExporter())
    return exported


def _of(name: str, environment: Mapping[str, str]) -> str:
    """The variable for traces or, without it, the one for everything."""
    traces = environment.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}", "").strip()
    return traces or environment.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip()
