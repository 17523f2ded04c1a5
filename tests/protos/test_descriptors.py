"""The compiled descriptors fit the .proto files, agree with another implementation's, and import beside it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from normfold.protos import compile as compiler
from normfold.protos import grpc_service, health, model_config, pool


def _messages(descriptors):
    for message in descriptors:
        yield message
        yield from _messages(message.nested_types)


def _field(field: FieldDescriptor) -> tuple:
    oneof = field.containing_oneof.name if field.containing_oneof else None
    refers_to = (field.message_type or field.enum_type).full_name if field.message_type or field.enum_type else None
    return field.number, field.name, field.type, field.is_repeated, refers_to, oneof


def _shape(message: Descriptor) -> tuple:
    enums = {e.name: [(v.name, v.number) for v in e.values] for e in message.enum_types}
    return sorted(_field(f) for f in message.fields), enums


def _described(*files) -> dict:
    return {m.full_name: _shape(m) for f in files for m in _messages(f.message_types_by_name.values())}


def test_the_committed_descriptors_and_types_fit_the_proto_files():
    assert compiler.main(["--check"]) == 0


def test_a_proto_that_protoc_refuses_is_reported_in_its_own_words(monkeypatch):
    monkeypatch.setattr(compiler, "FILES", ("no_such.proto",))
    with pytest.raises(RuntimeError, match=r"no_such\.proto"):
        compiler.compiled()


def test_check_names_the_stale_file_and_the_command_that_mends_it(monkeypatch, tmp_path, capsys):
    for file in compiler.HERE.glob("*.proto"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(compiler, "HERE", tmp_path)
    assert compiler.main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "protos/grpc_service.pyi" in said
    assert "python -m normfold.protos.compile" in said
    assert compiler.main([]) == 0
    assert compiler.main(["--check"]) == 0


def test_every_message_field_and_enum_agrees_with_tritonclient():
    """The properties of ModelMetadata are the one exception: they are KServe's; clients of Triton ignore them."""
    from tritonclient.grpc import model_config_pb2, service_pb2

    theirs = _described(model_config_pb2.DESCRIPTOR, service_pb2.DESCRIPTOR)
    ours = _described(model_config.DESCRIPTOR, grpc_service.DESCRIPTOR)
    metadata = "inference.ModelMetadataResponse"
    assert ours.pop(f"{metadata}.PropertiesEntry")
    fields, enums = ours[metadata]
    ours[metadata] = [field for field in fields if field[:2] != (6, "properties")], enums
    assert len(ours[metadata][0]) == len(fields) - 1
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == theirs[name], name
    types = {v.name: v.number for v in model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values}
    assert dict(model_config.DataType.items()) == types


def test_every_method_agrees_with_tritonclient():
    from tritonclient.grpc import service_pb2

    def methods(file):
        service = file.services_by_name["GRPCInferenceService"]
        return {
            m.name: (m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming)
            for m in service.methods
        }

    assert methods(grpc_service.DESCRIPTOR) == methods(service_pb2.DESCRIPTOR)


def test_the_messages_live_in_a_private_pool():
    from google.protobuf import descriptor_pool

    assert grpc_service.DESCRIPTOR.pool is pool.pool()
    assert grpc_service.DESCRIPTOR.pool is not descriptor_pool.Default()


def test_top_level_messages_can_be_pickled():
    request = grpc_service.ModelInferRequest(model_name="m", raw_input_contents=[b"\0"])
    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301


def test_enums_have_their_names_as_module_values():
    assert model_config.TYPE_FP32 == model_config.DataType.Value("TYPE_FP32") == 11
    assert health.HealthCheckResponse.SERVING == 1


@pytest.mark.parametrize(
    "imports",
    [
        "import tritonclient.grpc, normfold.protos.grpc_service as ours",
        "import normfold.protos.grpc_service as ours, tritonclient.grpc",
    ],
)
def test_tritonclient_imports_beside_ours_in_either_order(imports):
    script = f"{imports}\nfrom tritonclient.grpc import service_pb2 as theirs\n" + (
        "request = theirs.ModelInferRequest(model_name='m', raw_input_contents=[b'xyz'])\n"
        "print(ours.ModelInferRequest.FromString(request.SerializeToString()).raw_input_contents[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "b'xyz'"), done.stderr


def test_the_messages_work_on_protobufs_pure_python_too():
    script = (
        "from google.protobuf.internal import api_implementation\n"
        "from normfold.protos import grpc_service as pb, model_config\n"
        "request = pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor(name='x')])\n"
        "request.parameters['a'].int64_param = 1\n"
        "group = model_config.ModelInstanceGroup.KIND_CPU\n"
        "print(api_implementation.Type(), pb.ModelInferRequest.FromString(request.SerializeToString()) == request)"
    )
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, "python True"), done.stderr
