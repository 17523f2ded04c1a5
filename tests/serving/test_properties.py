"""Whatever is sent: right requests come back bit for bit, wrong ones get a status and harm nobody else."""

from __future__ import annotations

import struct

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import DATATYPES, Datatype

SIZES = st.lists(st.integers(0, 4), max_size=4)
SHARED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def identities(serve, models, tmp_path_factory):
    """A server with one Identity model for each datatype, of any shape, and one of rank 2 with a fixed size."""
    root = tmp_path_factory.mktemp("identities")
    for datatype in DATATYPES:
        models.write(root / datatype.name, models.identity(datatype.onnx, None))
        models.write(
            root / f"{datatype.name}-typed", models.identity(datatype.onnx, ["N", 3]), config="max_batch_size: 8"
        )
    with serve(root) as one:
        yield one


@st.composite
def tensors(draw) -> tuple[Datatype, list[int], bytes]:
    datatype = draw(st.sampled_from(DATATYPES))
    shape = draw(SIZES)
    count = int(np.prod(shape, dtype=np.int64))
    if datatype.name == "BYTES":
        elements = draw(st.lists(st.binary(max_size=12), min_size=count, max_size=count))
        return datatype, shape, b"".join(struct.pack("<I", len(e)) + e for e in elements)
    if datatype.name == "BOOL":
        return datatype, shape, bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    size = count * datatype.itemsize
    return datatype, shape, draw(st.binary(min_size=size, max_size=size))


@SHARED
@given(tensors())
def test_any_tensor_comes_back_bit_for_bit(identities, tensor):
    datatype, shape, data = tensor
    request = pb.ModelInferRequest(model_name=datatype.name, raw_input_contents=[data])
    request.inputs.add(name="x", datatype=datatype.name, shape=shape)
    response = identities.infer(request)
    assert response.raw_output_contents[0] == data
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == (datatype.name, shape)


@SHARED
@given(st.sampled_from([d for d in DATATYPES if d.contents_field]), st.integers(0, 8), st.data())
def test_typed_contents_come_back_as_raw_ones(identities, datatype, rows, data):
    count = rows * 3
    if datatype.name == "BYTES":
        values = data.draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
        raw = b"".join(struct.pack("<I", len(e)) + e for e in values)
    else:
        wire = data.draw(st.binary(min_size=count * datatype.itemsize, max_size=count * datatype.itemsize))
        array = np.frombuffer(wire, datatype.dtype if datatype.name != "BOOL" else np.uint8)
        array = (
            array % 2 == 1 if datatype.name == "BOOL" else np.nan_to_num(array) if array.dtype.kind == "f" else array
        )
        values, raw = array.tolist(), array.tobytes()
    request = pb.ModelInferRequest(model_name=f"{datatype.name}-typed")
    tensor = request.inputs.add(name="x", datatype=datatype.name, shape=[rows, 3])
    tensor.contents.SetInParent()
    getattr(tensor.contents, datatype.contents_field).extend(values)
    response = identities.infer(request)
    assert response.raw_output_contents[0] == raw
    request.parameters["binary_data_output"].bool_param = False
    answered = identities.infer(request).outputs[0].contents
    assert list(getattr(answered, datatype.contents_field)) == values


NAMES = st.sampled_from(["m", "nb", "two", "text", "bad", "nope", "", "x", "a", "b", "y", "\n", "é" * 50])
NUMBERS = st.sampled_from([0, 1, 2, 4, 8, 9, -1, 2**31, 2**62, -(2**63), 2**63 - 1])
CHOICES = st.one_of(
    st.builds(pb.InferParameter, bool_param=st.booleans()),
    st.builds(pb.InferParameter, int64_param=NUMBERS),
    st.builds(pb.InferParameter, string_param=NAMES),
    st.builds(pb.InferParameter, double_param=st.floats()),
    st.builds(pb.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    st.builds(pb.InferParameter),
)
SHARED_MEMORY = ["shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"]
OUTPUT_KEYS = ["classification", "binary_data", *SHARED_MEMORY]
KEYS = st.sampled_from(["priority", "timeout", "binary_data_output", "triton_x", "sequence_id", "zzz", *OUTPUT_KEYS])


@st.composite
def mutations(draw, base: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """``base`` with one to four things changed."""
    request = pb.ModelInferRequest()
    request.CopyFrom(base)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.integers(0, 9))
        tensor = draw(st.sampled_from(list(request.inputs))) if request.inputs else None
        if kind == 0:
            setattr(request, draw(st.sampled_from(["model_name", "model_version", "id"])), draw(NAMES))
        elif kind == 1 and tensor:
            tensor.name = draw(NAMES)
        elif kind == 2 and tensor:
            tensor.datatype = draw(st.sampled_from([d.name for d in DATATYPES] + ["", "fp32", "NOPE"]))
        elif kind == 3 and tensor:
            tensor.shape[:] = draw(st.lists(NUMBERS, max_size=5) | st.just([1] * 2000))
        elif kind == 4:
            request.raw_input_contents[:] = draw(st.lists(st.binary(max_size=40), max_size=4))
        elif kind == 5 and tensor:
            field = draw(st.sampled_from([d.contents_field for d in DATATYPES if d.contents_field]))
            value = b"x" if field == "bytes_contents" else 1
            getattr(tensor.contents, field).extend([value] * draw(st.integers(0, 9)))
            if draw(st.booleans()):
                request.raw_input_contents[:] = []
        elif kind == 6:
            request.parameters[draw(KEYS)].CopyFrom(draw(CHOICES))
        elif kind == 7 and tensor:
            tensor.parameters[draw(KEYS)].CopyFrom(draw(CHOICES))
        elif kind == 8:
            output = request.outputs.add(name=draw(NAMES))
            output.parameters[draw(KEYS)].CopyFrom(draw(CHOICES))
        elif kind == 9 and tensor:
            request.inputs.append(tensor)
    return request


#: The statuses of a caller's mistake.
MINE = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE}


def refused(call, *arguments, **options) -> grpc.RpcError | None:
    """The error of a call, None where it was answered."""
    try:
        call(*arguments, **options)
    except grpc.RpcError as error:
        return error
    return None


@settings(SHARED, max_examples=300)
@given(st.data())
def test_a_mutated_request_is_answered_or_told_its_mistake_and_harms_nobody(server, ask, data):
    base = ask("two", a=[[1, 2, 3, 4]], b=[[4, 3, 2, 1]]) if data.draw(st.booleans()) else ask("m")
    request = data.draw(mutations(base))
    neighbour = server.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=pb.ModelInferResponse.FromString,
    ).future(ask("m", x=[[9, 8, 7, 6]]), timeout=30)
    refusal = refused(server.infer, request)
    assert refusal is None or refusal.code() in MINE, refusal
    assert refusal is None or refusal.details().isprintable()
    assert neighbour.result().raw_output_contents[0] == np.array([27, 24, 21, 18], np.float32).tobytes()


@settings(SHARED, max_examples=300)
@given(st.data())
def test_mutated_bytes_are_answered_or_told_their_mistake(server, ask, data):
    wire = bytearray(ask("two", a=[[1, 2, 3, 4]], b=[[4, 3, 2, 1]]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(wire) - 1))
        kind = data.draw(st.integers(0, 2))
        if kind == 0:
            wire[at] = data.draw(st.integers(0, 255))
        elif kind == 1:
            del wire[at:]
            wire += b"\0"
        else:
            wire[at:at] = data.draw(st.binary(max_size=4))
    call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    refusal = refused(call, bytes(wire), timeout=30)
    assert refusal is None or refusal.code() in MINE, refusal


def test_bytes_nested_ten_thousand_deep_are_told_their_mistake(server):
    wire = b""
    for _ in range(10_000):
        wire = b"\x2b" + wire[:1_000_000] + b"\x2c"  # an unknown group in a group in a group …
    call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as caught:
        call(wire, timeout=30)
    assert caught.value.code() in MINE
    assert server.call("ServerLive", pb.ServerLiveRequest()).live


@pytest.mark.parametrize("count", [10_000, 100_000])
@pytest.mark.parametrize("kind", ["inputs", "outputs", "parameters", "raw"])
def test_thousands_of_everything_are_told_their_mistake(server, ask, kind, count):
    request = ask()
    if kind == "inputs":
        for number in range(count):
            request.inputs.add(name=str(number), datatype="FP32", shape=[1, 4])
    elif kind == "outputs":
        for number in range(count):
            request.outputs.add(name=str(number))
    elif kind == "parameters":
        for number in range(count):
            request.parameters[str(number)].uint64_param = 1
    else:
        request.raw_input_contents.extend([b"x"] * count)
    with pytest.raises(grpc.RpcError) as caught:
        server.infer(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.details()) < 3001
