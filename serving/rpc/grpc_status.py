"""Our statuses as grpcio has them; only a frontend that runs on grpcio imports this."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from normfold.serving.errors import Status

CODES: Mapping[Status, grpc.StatusCode] = {status: grpc.StatusCode[status.name] for status in Status}
