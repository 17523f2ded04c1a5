"""The statuses of errors are gRPC's."""

from __future__ import annotations

import grpc

from normfold.serving.errors import Status
from normfold.serving.rpc.grpc_status import CODES


def test_a_status_is_grpcs_by_name_and_number():
    assert {(status.name, status.value) for status in Status} == {(c.name, c.value[0]) for c in grpc.StatusCode}
    assert {status.name: code.name for status, code in CODES.items()} == {s.name: s.name for s in Status}
