"""The parameters of an inference request: those with a meaning, those that are ignored, and those that are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from normfold.protos import grpc_service as pb
from normfold.serving.errors import InvalidRequest
from normfold.serving.wording import quoted

#: Keys with a meaning in the protocol, and the kinds of value that each may have. The keys of sequences are accepted
#: and do nothing, as in Triton for models without sequences.
KINDS = {
    "sequence_id": ("int64_param", "uint64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    "binary_data_output": ("bool_param",),
}

#: The kinds of value that a key without a meaning may have; the key is ignored.
CUSTOM_KINDS = ("int64_param", "bool_param", "string_param", "double_param")

RESERVED_PREFIX = "triton_"
RESERVED_ALLOWED = ("triton_enable_empty_final_response",)


@dataclass(frozen=True)
class RequestParameters:
    """The settings of one request that its parameters make."""

    #: The priority level; 1 comes first. 0: the model's default.
    priority: int = 0
    #: Longest wait in the queue, in microseconds; 0: the model's default.
    timeout_us: int = 0
    #: Answer in typed contents, which people can read, instead of raw contents.
    typed: bool = False


NONE = RequestParameters()


def read_parameters(parameters: Mapping[str, pb.InferParameter]) -> RequestParameters:
    """The settings that ``parameters`` make. Raises InvalidRequest for a key with a wrong kind of value."""
    if not parameters:
        return NONE
    for key, value in parameters.items():
        _check(key, value.WhichOneof("parameter_choice") or "")
    priority = parameters["priority"] if "priority" in parameters else pb.InferParameter()
    if priority.int64_param < 0:
        raise InvalidRequest("invalid value for 'priority', expected value >= 0.")
    timeout = parameters["timeout"].int64_param if "timeout" in parameters else 0
    if timeout < 0:
        raise InvalidRequest(f"invalid value for 'timeout', expected microseconds >= 0, got {timeout}.")
    typed = "binary_data_output" in parameters and not parameters["binary_data_output"].bool_param
    return RequestParameters(priority.int64_param or priority.uint64_param, timeout, typed)


def _check(key: str, kind: str) -> None:
    if key.startswith(RESERVED_PREFIX):
        if key not in RESERVED_ALLOWED:
            raise InvalidRequest(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys "
                f"starting with 'triton_' are allowed: {' '.join(RESERVED_ALLOWED)}"
            )
        return
    allowed = KINDS.get(key, CUSTOM_KINDS)
    if kind not in allowed:
        if key not in KINDS:
            raise InvalidRequest(
                f"invalid value type for {quoted(key)} parameter, expected int64_param, bool_param, or string_param."
            )
        raise InvalidRequest(f"invalid value type for '{key}' parameter, expected {' or '.join(allowed)}.")
