"""The requests that Triton and this server are both asked, in this order, each with a name of its own."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from normfold.protos import grpc_service as pb

#: (name, remote procedure, request or, for a stream, requests)
Case = tuple[str, str, Any]

X = np.arange(4, dtype="<f4").tobytes()
I32 = np.arange(4, dtype="<i4").tobytes()
FIELDS = {
    "INT8": ("i1", "int_contents"),
    "UINT8": ("u1", "uint_contents"),
    "INT16": ("<i2", "int_contents"),
    "UINT16": ("<u2", "uint_contents"),
    "UINT32": ("<u4", "uint_contents"),
    "INT64": ("<i8", "int64_contents"),
    "UINT64": ("<u8", "uint64_contents"),
    "FP16": ("<f2", "fp32_contents"),
    "FP64": ("<f8", "fp64_contents"),
    "BOOL": ("?", "bool_contents"),
}
OTHER_FIELDS = ("int_contents", "uint_contents", "int64_contents", "fp32_contents", "bool_contents", "fp64_contents")
PARAMETERS: tuple[tuple[str, Any], ...] = (
    ("foo", {"int64_param": 1}),
    ("foo", {"string_param": "a"}),
    ("foo", {"bool_param": True}),
    ("foo", {"double_param": 1.5}),
    ("foo", {"uint64_param": 1}),
    ("timeout", {"int64_param": 1_000_000}),
    ("timeout", {"string_param": "a"}),
    ("timeout", {"uint64_param": 5}),
    ("timeout", {"int64_param": -1}),
    ("priority", {"int64_param": 1}),
    ("priority", {"uint64_param": 1}),
    ("priority", {"int64_param": -1}),
    ("priority", {"int64_param": 9}),
    ("priority", {"string_param": "a"}),
    ("sequence_id", {"int64_param": 5}),
    ("sequence_id", {"string_param": "a"}),
    ("sequence_start", {"bool_param": True}),
    ("sequence_start", {"int64_param": 1}),
    ("sequence_end", {"bool_param": True}),
    ("triton_foo", {"int64_param": 1}),
    ("triton_final_response", {"bool_param": True}),
    ("triton_enable_empty_final_response", {"bool_param": True}),
    ("binary_data_output", {"bool_param": True}),
    ("binary_data_output", {"int64_param": 1}),
    ("headers", {"string_param": "a"}),
)
TENSOR_PARAMETERS: tuple[dict[str, Any], ...] = (
    {"classification": {"bool_param": True}},
    {"classification": {"string_param": "2"}},
    {"binary_data": {"int64_param": 1}},
    {"foo": {"int64_param": 1}},
    {"shared_memory_region": {"string_param": "a"}},
    {"shared_memory_byte_size": {"int64_param": 16}},
    {"shared_memory_region": {"int64_param": 1}, "shared_memory_byte_size": {"int64_param": 16}},
    {"shared_memory_region": {"string_param": "nope"}, "shared_memory_byte_size": {"int64_param": 16}},
)


def cases() -> Iterator[Case]:
    """Every request, in the order in which they must be sent."""
    yield from _reading()
    yield from _settings()
    for name, request in (*_inferences(), *_datatypes(), *_strings(), *_classes(), *_parameters()):
        yield name, "ModelInfer", request
    yield from _streams()
    yield from _control()


def inference(
    model: str,
    *inputs: tuple[str, str, list[int]],
    raw: tuple[bytes, ...] = (),
    outputs: tuple[str, ...] = (),
    **more: Any,
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=raw, **more)
    for name, datatype, shape in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    for name in outputs:
        request.outputs.add(name=name)
    return request


def typed(model: str, *inputs: tuple[str, str, list[int], dict[str, Any]], **more: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, **more)
    for name, datatype, shape, contents in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents))
    return request


def plain(**more: Any) -> pb.ModelInferRequest:
    return inference("m", ("x", "FP32", [1, 4]), raw=(X,), **more)


def _reading() -> Iterator[Case]:
    yield "live", "ServerLive", pb.ServerLiveRequest()
    yield "ready", "ServerReady", pb.ServerReadyRequest()
    for model in ("m", "nope", "", "bad", "nb"):
        for version in ("", "1", "2", "7", "abc", "-1", "0", "1.5", " 1"):
            asked = f"{model!r} {version!r}"
            yield f"ModelReady {asked}", "ModelReady", pb.ModelReadyRequest(name=model, version=version)
            yield f"ModelMetadata {asked}", "ModelMetadata", pb.ModelMetadataRequest(name=model, version=version)
            if version in ("", "1", "7", "abc"):
                yield f"ModelConfig {asked}", "ModelConfig", pb.ModelConfigRequest(name=model, version=version)
    for model in ("two", "str", "resh", "q", "id_fp16"):
        yield f"ModelMetadata {model!r}", "ModelMetadata", pb.ModelMetadataRequest(name=model)
    for model in ("resh", "q"):
        yield f"ModelConfig {model!r}", "ModelConfig", pb.ModelConfigRequest(name=model)
    for model, version in (("nope", ""), ("bad", ""), ("m", "7"), ("m", "abc"), ("m", "-1")):
        request = pb.ModelStatisticsRequest(name=model, version=version)
        yield f"ModelStatistics {model!r} {version!r}", "ModelStatistics", request
    yield "index", "RepositoryIndex", pb.RepositoryIndexRequest()
    yield "index of ready", "RepositoryIndex", pb.RepositoryIndexRequest(ready=True)
    yield "index of a repository", "RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r")
    for kind in ("System", "Cuda"):
        for name in ("", "q"):
            for verb in ("Status", "Unregister"):
                rpc = f"{kind}SharedMemory{verb}"
                yield f"{rpc} {name!r}", rpc, getattr(pb, f"{rpc}Request")(name=name)
    request = pb.SystemSharedMemoryRegisterRequest(name="a", key="/nokey", byte_size=16)
    yield "register no key", "SystemSharedMemoryRegister", request
    cuda = pb.CudaSharedMemoryRegisterRequest(name="a", raw_handle=bytes(64), byte_size=16)
    yield "register cuda", "CudaSharedMemoryRegister", cuda


def _settings() -> Iterator[Case]:
    trace: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("m", "", ()),
        ("nope", "", ()),
        ("", "trace_rate", ("abc",)),
        ("m", "trace_rate", ("5",)),
        ("m", "", ()),
        ("m", "trace_rate", ()),
        ("", "trace_level", ("OFF",)),
        ("", "trace_level", ()),
    )
    for number, (model, key, values) in enumerate(trace):
        setting = pb.TraceSettingRequest.SettingValue(value=values)
        request = pb.TraceSettingRequest(model_name=model, settings={key: setting} if key else {})
        yield f"trace {number}: {model!r} {key} {values}", "TraceSetting", request
    yield "log", "LogSettings", pb.LogSettingsRequest()
    for key, value in (
        ("log_verbose_level", {"uint32_param": 1}),
        ("log_verbose_level", {"string_param": "1"}),
        ("log_verbose_level", {"uint32_param": 0}),
        ("log_info", {"bool_param": False}),
        ("log_info", {"bool_param": True}),
        ("log_format", {"string_param": "ISO8601"}),
        ("log_format", {"string_param": "nope"}),
        ("log_format", {"string_param": "default"}),
        ("log_file", {"string_param": "/tmp/x.log"}),
    ):
        setting = pb.LogSettingsRequest.SettingValue(**value)
        yield f"log {key} {value}", "LogSettings", pb.LogSettingsRequest(settings={key: setting})


def _inferences() -> Iterator[tuple[str, pb.ModelInferRequest]]:
    x = ("x", "FP32", [1, 4])
    yield "plain", plain()
    for version in ("1", "7", "abc", "-1", "0"):
        yield f"version {version}", plain(model_version=version, id="7")
    for model in ("nope", "", "bad"):
        yield f"model {model!r}", inference(model, x, raw=(X,))
    for outputs in (("z",), ("z", "y"), ("z", "z"), ("foo",)):
        yield f"outputs {outputs}", plain(outputs=outputs)
    for count in (4, 3, 5, 0):
        yield f"typed {count}", typed("m", ("x", "FP32", [1, 4], {"fp32_contents": [1] * count}), id="5")
    yield "typed wrong", typed("m", ("x", "FP32", [1, 4], {"int_contents": [1] * 4}))
    yield "typed twice", typed("m", ("x", "FP32", [1, 4], {"fp32_contents": [1] * 4, "int_contents": [1] * 4}))
    for count in (4, 0):
        yield (
            f"raw and typed {count}",
            typed("m", ("x", "FP32", [1, 4], {"fp32_contents": [1] * count}), raw_input_contents=[X]),
        )
    yield "nothing", inference("m", x)
    yield "no inputs", inference("m")
    yield "twice", inference("m", x, x, raw=(X, X))
    yield "extra raw", inference("m", x, raw=(X, X))
    yield "wrong name", inference("m", ("foo", "FP32", [1, 4]), raw=(X,))
    yield "two for one", inference("m", x, ("b", "FP32", [1, 4]), raw=(X, X), id="9")
    for datatype in ("FP64", "fp32", "", "FLOAT", "BYTES", "INT32"):
        yield f"datatype {datatype!r}", inference("m", ("x", datatype, [1, 4]), raw=(X,))
    for shape in ([1, 5], [4], [], [2, 2], [-1, 4], [1, 4, 1], [1, -4], [2, 4], [2**62, 4]):
        yield f"shape {shape}", inference("m", ("x", "FP32", shape), raw=(X,))
    for batch in (0, 8, 9):
        yield f"batch {batch}", inference("m", ("x", "FP32", [batch, 4]), raw=(X * batch,))
    for raw in (X[:12], X + b"1234", b""):
        yield f"bytes {len(raw)}", inference("m", x, raw=(raw,), id="idd")
    for shape in ([0, 3], [1, 3], [2, 3], [3], [1, 4], [-1, 3], [1, 1, 3], []):
        yield f"nb {shape}", inference("nb", ("x", "FP32", shape), raw=(bytes(4 * max(0, math.prod(shape))),))
    yield "resh", inference("resh", ("x", "FP32", [2, 1]), raw=(X[:8],))
    yield "resh bad", inference("resh", ("x", "FP32", [2]), raw=(X[:8],))
    a, b = ("a", "INT32", [1, 4]), ("b", "INT32", [1, 4])
    contents = {"int_contents": [1, 2, 3, 4]}
    yield "two", inference("two", a, b, raw=(I32, I32))
    yield "two swapped", inference("two", b, a, raw=(I32, I32))
    yield "two of one", inference("two", a, raw=(I32,))
    yield "two with one raw", inference("two", a, b, raw=(I32,))
    yield "two batches", inference("two", a, ("b", "INT32", [2, 4]), raw=(I32, I32 * 2))
    yield "two typed", typed("two", (*a, contents), (*b, contents))
    mixed = typed("two", (*a, contents), raw_input_contents=[I32])
    mixed.inputs.add(name="b", datatype="INT32", shape=[1, 4])
    yield "two mixed", mixed
    lacking = typed("two", (*a, contents))
    lacking.inputs.add(name="b", datatype="INT32", shape=[1, 4])
    yield "two, one without data", lacking


def _datatypes() -> Iterator[tuple[str, pb.ModelInferRequest]]:
    for datatype, (kind, field) in FIELDS.items():
        model = f"id_{datatype.lower()}"
        raw = np.array([[0, 1, 1]], kind).tobytes()
        yield f"{datatype} raw", inference(model, ("x", datatype, [1, 3]), raw=(raw,))
        yield f"{datatype} empty", inference(model, ("x", datatype, [1, 0]), raw=(b"",))
        for other in {field: None} | dict.fromkeys(OTHER_FIELDS):
            yield f"{datatype} in {other}", typed(model, ("x", datatype, [1, 3], {other: [0, 1, 1]}))
    yield "INT8 300", typed("id_int8", ("x", "INT8", [1, 1], {"int_contents": [300]}))
    yield "BOOL 2", inference("id_bool", ("x", "BOOL", [1, 2]), raw=(b"\2\1",))


def _strings() -> Iterator[tuple[str, pb.ModelInferRequest]]:
    def packed(*values: bytes) -> bytes:
        return b"".join(struct.pack("<I", len(value)) + value for value in values)

    for name, raw in {
        "two": packed(b"a", b"bcd"),
        "not UTF-8": packed(b"\xff\xfe", b"\0"),
        "one": packed(b"a"),
        "three": packed(b"a", b"b", b"c"),
        "cut": packed(b"a") + struct.pack("<I", 5) + b"ab",
        "half a length": packed(b"a") + b"\1\0",
        "none": b"",
        "of length 0": packed(b"", b""),
        "huge": packed(b"a") + struct.pack("<I", 2**32 - 1) + b"ab",
    }.items():
        yield f"strings, {name}", inference("str", ("x", "BYTES", [1, 2]), raw=(raw,))
    for count in (2, 1, 3):
        yield f"typed strings, {count}", typed("str", ("x", "BYTES", [1, 2], {"bytes_contents": [b"a"] * count}))


def _classes() -> Iterator[tuple[str, pb.ModelInferRequest]]:
    scores = np.array([[3, 1, 3, 2.5], [0, -1, 7, 7]], "<f4").tobytes()
    for count in (1, 2, 4, 9, 0, -1):
        request = inference("m", ("x", "FP32", [2, 4]), raw=(scores,), outputs=("y",))
        request.outputs[0].parameters["classification"].int64_param = count
        yield f"classes {count}", request
    for model, datatype, values in (
        ("id_int64", "INT64", np.array([5, 9, 7], "<i8")),
        ("id_fp16", "FP16", np.array([5, 9, 7], "<f2")),
        ("id_bool", "BOOL", np.array([0, 1, 1], "?")),
        ("nb", "FP32", np.array([5, 9, 7], "<f4")),
    ):
        request = inference(model, ("x", datatype, [1, 3]), raw=(values.tobytes(),), outputs=("y",))
        request.outputs[0].parameters["classification"].int64_param = 2
        yield f"classes of {model}", request


def _parameters() -> Iterator[tuple[str, pb.ModelInferRequest]]:
    for key, value in PARAMETERS:
        for model in ("m", "q"):
            request = inference(model, ("x", "FP32", [1, 4]), raw=(X,))
            request.parameters[key].CopyFrom(pb.InferParameter(**value))
            yield f"parameter {key} {value} of {model}", request
    for parameters in TENSOR_PARAMETERS:
        made = {key: pb.InferParameter(**value) for key, value in parameters.items()}
        request = plain(outputs=("y",))
        request.outputs[0].parameters.MergeFrom(pb.ModelInferRequest(parameters=made).parameters)
        yield f"output parameters {parameters}", request
        if "foo" not in parameters and "classification" not in parameters and "binary_data" not in parameters:
            request = inference("m", ("x", "FP32", [1, 4]))
            request.inputs[0].parameters.MergeFrom(pb.ModelInferRequest(parameters=made).parameters)
            yield f"input parameters {parameters}", request


def _streams() -> Iterator[Case]:
    wrong = inference("m", ("x", "FP32", [1, 5]), raw=(X,), id="3")
    final = plain(id="1")
    final.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, requests in {
        "two": [plain(id="1"), plain(id="2")],
        "wrong, then right": [wrong, plain(id="2")],
        "unknown model": [inference("nope", ("x", "FP32", [1, 4]), raw=(X,), id="a")],
        "unknown version": [plain(id="a", model_version="7")],
        "no id": [inference("m", ("x", "FP32", [1, 5]), raw=(X,))],
        "empty final response": [final],
        "none": [],
    }.items():
        yield f"stream, {name}", "ModelStreamInfer", requests


def _control() -> Iterator[Case]:
    value = pb.ModelRepositoryParameter
    loads: dict[str, dict[str, Any]] = {
        "unknown": {"model_name": "nope"},
        "broken": {"model_name": "bad"},
        "nameless": {},
        "of a repository": {"repository_name": "r", "model_name": "nb"},
        "bad config": {"model_name": "nb", "parameters": {"config": value(string_param="{bad")}},
        "config of another kind": {"model_name": "nb", "parameters": {"config": value(int64_param=1)}},
        "unknown parameter": {"model_name": "nb", "parameters": {"foo": value(int64_param=1)}},
        "file alone": {"model_name": "nb", "parameters": {"file:1/model.onnx": value(bytes_param=b"abc")}},
    }
    for name, fields in loads.items():
        yield f"load, {name}", "RepositoryModelLoad", pb.RepositoryModelLoadRequest(**fields)
    unloads: dict[str, dict[str, Any]] = {
        "unknown": {"model_name": "nope"},
        "nameless": {},
        "of a repository": {"repository_name": "r", "model_name": "nb"},
        "with dependents": {"model_name": "nb", "parameters": {"unload_dependents": value(bool_param=True)}},
    }
    for name, fields in unloads.items():
        yield f"unload, {name}", "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(**fields)
    yield "index, one unloaded", "RepositoryIndex", pb.RepositoryIndexRequest()
    yield "index of ready, one unloaded", "RepositoryIndex", pb.RepositoryIndexRequest(ready=True)
    for version in ("", "1"):
        for rpc in ("ModelReady", "ModelMetadata", "ModelConfig"):
            request = getattr(pb, f"{rpc}Request")(name="nb", version=version)
            yield f"{rpc} of an unloaded model {version!r}", rpc, request
        infer = inference("nb", ("x", "FP32", [1, 3]), raw=(bytes(12),), model_version=version)
        yield f"unloaded model {version!r}", "ModelInfer", infer
    yield "statistics of an unloaded model", "ModelStatistics", pb.ModelStatisticsRequest(name="nb")
    yield "load again", "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nb")
    yield "loaded again", "ModelInfer", inference("nb", ("x", "FP32", [1, 3]), raw=(bytes(12),))
