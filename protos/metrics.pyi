from normfold.protos import grpc_service as _grpc_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SnapshotRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotResponse(_message.Message):
    __slots__ = ("models", "failed_calls", "processes")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    FAILED_CALLS_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSnapshot]
    failed_calls: _containers.RepeatedCompositeFieldContainer[FailedCalls]
    processes: _containers.RepeatedCompositeFieldContainer[ProcessSnapshot]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSnapshot, _Mapping[_Any, _Any]]]] = ..., failed_calls: _Optional[_Iterable[_Union[FailedCalls, _Mapping[_Any, _Any]]]] = ..., processes: _Optional[_Iterable[_Union[ProcessSnapshot, _Mapping[_Any, _Any]]]] = ...) -> None: ...

class ModelSnapshot(_message.Message):
    __slots__ = ("statistics", "request", "queue", "input", "infer", "output", "failures", "waiting", "device")
    class FailuresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    INFER_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    statistics: _grpc_service_pb2.ModelStatistics
    request: Histogram
    queue: Histogram
    input: Histogram
    infer: Histogram
    output: Histogram
    failures: _containers.ScalarMap[str, int]
    waiting: int
    device: str
    def __init__(self, statistics: _Optional[_Union[_grpc_service_pb2.ModelStatistics, _Mapping[_Any, _Any]]] = ..., request: _Optional[_Union[Histogram, _Mapping[_Any, _Any]]] = ..., queue: _Optional[_Union[Histogram, _Mapping[_Any, _Any]]] = ..., input: _Optional[_Union[Histogram, _Mapping[_Any, _Any]]] = ..., infer: _Optional[_Union[Histogram, _Mapping[_Any, _Any]]] = ..., output: _Optional[_Union[Histogram, _Mapping[_Any, _Any]]] = ..., failures: _Optional[_Mapping[str, int]] = ..., waiting: _Optional[int] = ..., device: _Optional[str] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("counts",)
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, counts: _Optional[_Iterable[int]] = ...) -> None: ...

class FailedCalls(_message.Message):
    __slots__ = ("method", "status", "count")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    method: str
    status: str
    count: int
    def __init__(self, method: _Optional[str] = ..., status: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class ProcessSnapshot(_message.Message):
    __slots__ = ("worker", "resident_bytes", "cpu_seconds")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    worker: int
    resident_bytes: int
    cpu_seconds: float
    def __init__(self, worker: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., cpu_seconds: _Optional[float] = ...) -> None: ...
