"""The options of gRPC's core: no call is refused for being one of many, and a connection lasts as long as it may."""

from __future__ import annotations

from normfold.serving.frontends.limits import ClientLimits

#: The largest number that an option takes; for a time: no limit.
MOST = (1 << 31) - 1
#: Calls under way on one connection; a client keeps further ones back until others have ended, which costs the server
#: nothing, while a refusal costs gRPC nearly as much as an answer.
MOST_CALLS = 128


def options(max_message_bytes: int, reuse_port: bool, limits: ClientLimits) -> tuple[tuple[str, int], ...]:
    """The options of a server, as names and numbers of gRPC's core."""
    return (
        # gRPC's default is on: a second server would then start without an error and take half the connections.
        ("grpc.so_reuseport", int(reuse_port)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", MOST_CALLS),
        # The core's default counts calls that have ended, too, and so resets calls of clients that keep to the limit.
        ("grpc.http.overload_protection", 0),
        # Beyond 1,000 calls that wait for Python, and after 30 s, the core's default is to cancel calls.
        ("grpc.server.max_pending_requests", MOST),
        ("grpc.server.max_pending_requests_hard_limit", MOST),
        ("grpc.server_max_unrequested_time_in_server", MOST),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_connection_age_ms", _milliseconds(limits.max_age_seconds)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(limits.age_grace_seconds)),
        ("grpc.max_connection_idle_ms", _milliseconds(limits.max_idle_seconds)),
        ("grpc.keepalive_time_ms", _milliseconds(limits.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(limits.keepalive_timeout_seconds)),
    )


def _milliseconds(seconds: float) -> int:
    return max(1, round(1000 * seconds)) if seconds else MOST
