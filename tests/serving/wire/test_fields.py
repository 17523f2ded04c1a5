"""Fields that are read and written without protobuf are those of protobuf."""

from __future__ import annotations

import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.client.metadata import ModelMetadata, TensorMetadata, model_metadata, named
from normfold.serving.wire.fields import fields, numbers, packed, sized


def test_metadata_is_read_as_protobuf_reads_it():
    message = pb.ModelMetadataResponse(name="é", versions=["1", "22"], platform="onnx")
    message.inputs.add(name="x" * 300, datatype="FP32", shape=[-1, 77, 1 << 40])
    message.outputs.add(name="y", datatype="BYTES")
    message.outputs.add(name="z", datatype="BYTES", shape=[0])
    message.properties["a"] = "b"
    message.properties[""] = ""
    assert model_metadata(message.SerializeToString()) == ModelMetadata(
        "é",
        ("1", "22"),
        "onnx",
        (TensorMetadata("x" * 300, "FP32", (-1, 77, 1 << 40)),),
        (TensorMetadata("y", "BYTES", ()), TensorMetadata("z", "BYTES", (0,))),
        {"a": "b", "": ""},
    )
    assert model_metadata(b"") == ModelMetadata("", (), "", (), ())


@pytest.mark.parametrize(("name", "version"), [("m", ""), ("", ""), ("é" * 99, "12")])
def test_a_request_that_names_a_model_is_written_as_protobuf_writes_it(name, version):
    assert named(name, version) == pb.ModelMetadataRequest(name=name, version=version).SerializeToString()
    assert named(name, version) == pb.ModelReadyRequest(name=name, version=version).SerializeToString()


def test_every_kind_of_field_is_passed_over():
    data = b"\x08\x96\x01" + b"\x11" + bytes(8) + sized(3, b"abc") + b"\x25" + bytes(4) + packed(5, [1, 300])
    found = [(number, data[begin:end]) for number, _, begin, end in fields(data)]
    assert found == [(1, b"\x96\x01"), (2, bytes(8)), (3, b"abc"), (4, bytes(4)), (5, b"\x01\xac\x02")]
    assert numbers(data, len(data) - 3, len(data)) == [1, 300]


def test_a_field_that_is_cut_short_is_not_given():
    """Who reads only the first fields must not take it for a whole one."""
    found = fields(sized(1, b"a") + b"\x12\x05abc")
    assert next(found)[0] == 1
    with pytest.raises(ValueError, match="end within a field"):
        next(found)


@pytest.mark.parametrize("data", [b"\x08", b"\x0a\x05a", b"\x11\0", b"\x0b", b"\x08" + b"\xff" * 11, b"\xff", b"\x80"])
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(ValueError, match=r"end within|a group|64 bits"):
        list(fields(data))
