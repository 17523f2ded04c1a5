"""tritonclient, unchanged, against the real server: what the first users have."""

from __future__ import annotations

import numpy as np
import pytest

grpcclient = pytest.importorskip("tritonclient.grpc")

X = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)


@pytest.fixture
def client(address):
    with grpcclient.InferenceServerClient(address) as client:
        yield client


def _input(name: str, array: np.ndarray, datatype: str = "FP32"):
    tensor = grpcclient.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def test_live_ready_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m", "1")
    assert not client.is_model_ready("nope")
    metadata = client.get_model_metadata("m", as_json=True)
    assert metadata["platform"] == "onnxruntime_onnx"
    assert metadata["versions"] == ["1", "2"]
    assert client.get_server_metadata().name == "normfold"


def test_infer_gives_the_same_numbers(client):
    answer = client.infer("m", [_input("x", X)], request_id="7")
    assert (answer.get_response().model_version, answer.get_response().id) == ("2", "7")
    np.testing.assert_array_equal(answer.as_numpy("y"), 3 * X)
    np.testing.assert_array_equal(answer.as_numpy("z"), -X)


def test_requested_outputs_and_versions(client):
    outputs = [grpcclient.InferRequestedOutput("z")]
    answer = client.infer("m", [_input("x", X)], model_version="1", outputs=outputs)
    np.testing.assert_array_equal(answer.as_numpy("z"), -X)
    assert answer.as_numpy("y") is None


def test_text(client):
    text = np.array([[b"a", b"\xff\x00"], [b"", "é".encode()]], object)
    answer = client.infer("text", [_input("x", text, "BYTES")]).as_numpy("y")
    assert answer.tolist() == text.tolist()


def test_classification(client):
    outputs = [grpcclient.InferRequestedOutput("y", class_count=2)]
    answer = client.infer("m", [_input("x", X)], outputs=outputs).as_numpy("y")
    assert answer.tolist() == [[b"12.000000:3:d", b"9.000000:2:c"], [b"12.000000:0:a", b"9.000000:1:b"]]
