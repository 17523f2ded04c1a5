"""tritonclient, unchanged, against the real server: sync, aio, streams, shared memory, model control, statistics."""

from __future__ import annotations

import asyncio
import queue
import shutil

import numpy as np
import pytest

grpcclient = pytest.importorskip("tritonclient.grpc")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException

X = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)


@pytest.fixture
def client(address):
    with grpcclient.InferenceServerClient(address) as client:
        yield client


@pytest.fixture
def own(start, repository, tmp_path):
    """A client of a server over a copy of the repository, for tests that change it."""
    shutil.copytree(repository, tmp_path / "repository")
    with start(tmp_path / "repository") as server, grpcclient.InferenceServerClient(server.address) as client:
        yield client


def _input(name: str, array: np.ndarray, datatype: str = "FP32", module=grpcclient):
    tensor = module.InferInput(name, list(array.shape), datatype)
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
    config = client.get_model_config("m", as_json=True)["config"]
    assert (config["max_batch_size"], config["backend"]) == (8, "onnxruntime")


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


def test_every_option_of_infer_is_taken(client):
    answer = client.infer(
        "m",
        [_input("x", X)],
        sequence_id=5,
        sequence_start=True,
        sequence_end=True,
        priority=1,
        timeout=1_000_000,
        headers={"a": "b"},
        client_timeout=30.0,
        compression_algorithm="gzip",
        parameters={"custom": "text", "number": 3, "flag": True},
    )
    np.testing.assert_array_equal(answer.as_numpy("y"), 3 * X)


def test_text(client):
    text = np.array([[b"a", b"\xff\x00"], [b"", "é".encode()]], object)
    answer = client.infer("text", [_input("x", text, "BYTES")]).as_numpy("y")
    assert answer.tolist() == text.tolist()


def test_classification(client):
    outputs = [grpcclient.InferRequestedOutput("y", class_count=2)]
    answer = client.infer("m", [_input("x", X)], outputs=outputs).as_numpy("y")
    assert answer.tolist() == [[b"12.000000:3:d", b"9.000000:2:c"], [b"12.000000:0:a", b"9.000000:1:b"]]


@pytest.mark.parametrize(
    ("model", "array", "words"),
    [
        ("nope", X, "Request for unknown model: 'nope' is not found"),
        ("m", X[:, :3], "unexpected shape for input 'x' for model 'm'"),
    ],
)
def test_an_error_has_the_words_that_programs_look_for(client, model, array, words):
    with pytest.raises(InferenceServerException, match=words):
        client.infer(model, [_input("x", np.ascontiguousarray(array))])


def test_calls_in_the_background(client):
    answers: queue.Queue = queue.Queue()
    for number in range(20):
        client.async_infer("m", [_input("x", X * number)], lambda result, error: answers.put((result, error)))
    totals = set()
    for _ in range(20):
        result, error = answers.get(timeout=30)
        assert error is None
        totals.add(float(result.as_numpy("y").sum()))
    assert totals == {float((3 * X * n).sum()) for n in range(20)}


def test_a_stream_with_an_error_in_it(client):
    answers: queue.Queue = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for number in range(10):
        client.async_stream_infer("m", [_input("x", X * number)], request_id=str(number))
    client.async_stream_infer("m", [_input("x", np.zeros((1, 3), np.float32))], request_id="wrong")
    client.async_stream_infer("m", [_input("x", X)], request_id="last")
    for number in range(10):
        result, error = answers.get(timeout=30)
        assert error is None
        assert result.get_response().id == str(number)
        assert result.get_response().parameters["triton_final_response"].bool_param
        np.testing.assert_array_equal(result.as_numpy("y"), 3 * X * number)
    result, error = answers.get(timeout=30)
    assert result is None
    assert "unexpected shape" in str(error)
    result, error = answers.get(timeout=30)
    assert result.get_response().id == "last"
    client.stop_stream()


def test_the_asyncio_client(address):
    aio = pytest.importorskip("tritonclient.grpc.aio")

    async def ask():
        async with aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            assert (await client.get_server_metadata()).name == "normfold"
            assert (await client.get_model_metadata("m")).name == "m"
            assert (await client.get_model_config("m")).config.name == "m"
            assert (await client.get_model_repository_index()).models
            assert (await client.get_inference_statistics("m")).model_stats
            calls = [client.infer("m", [_input("x", X * n, module=aio)]) for n in range(10)]
            answers = await asyncio.gather(*calls)

            async def requests():
                for number in range(5):
                    yield {"model_name": "m", "inputs": [_input("x", X, module=aio)], "request_id": str(number)}

            streamed = [result.get_response().id async for result, error in client.stream_infer(requests())]
            return answers, streamed

    answers, streamed = asyncio.run(ask())
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.as_numpy("y"), 3 * X * number)
    assert streamed == [str(number) for number in range(5)]


def test_system_shared_memory(own):
    shm = pytest.importorskip("tritonclient.utils.shared_memory")
    own.unregister_system_shared_memory()
    handle_in = shm.create_shared_memory_region("in", "/normfold_test_in", X.nbytes)
    handle_out = shm.create_shared_memory_region("out", "/normfold_test_out", X.nbytes)
    try:
        shm.set_shared_memory_region(handle_in, [X])
        own.register_system_shared_memory("in", "/normfold_test_in", X.nbytes)
        own.register_system_shared_memory("out", "/normfold_test_out", X.nbytes)
        assert set(own.get_system_shared_memory_status().regions) == {"in", "out"}
        tensor = grpcclient.InferInput("x", list(X.shape), "FP32")
        tensor.set_shared_memory("in", X.nbytes)
        output = grpcclient.InferRequestedOutput("y")
        output.set_shared_memory("out", X.nbytes)
        answer = own.infer("m", [tensor], outputs=[output]).get_output("y")
        assert list(answer.shape) == list(X.shape)
        np.testing.assert_array_equal(shm.get_contents_as_numpy(handle_out, np.float32, list(X.shape)), 3 * X)
        own.unregister_system_shared_memory("in")
        assert set(own.get_system_shared_memory_status().regions) == {"out"}
        with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'in'"):
            own.infer("m", [tensor])
        own.unregister_system_shared_memory()
    finally:
        shm.destroy_shared_memory_region(handle_in)
        shm.destroy_shared_memory_region(handle_out)
    assert not own.get_cuda_shared_memory_status().regions
    own.unregister_cuda_shared_memory()


def test_model_control(own):
    index = own.get_model_repository_index(as_json=True)["models"]
    assert [(m["name"], m["version"], m["state"]) for m in index][:3] == [
        ("m", "1", "READY"),
        ("m", "2", "READY"),
        ("nb", "1", "READY"),
    ]
    own.unload_model("nb")
    assert not own.is_model_ready("nb")
    own.load_model("nb")
    assert own.is_model_ready("nb")
    own.load_model("nb", config='{"max_batch_size": "16"}')
    assert own.get_model_config("nb").config.max_batch_size == 16
    with pytest.raises(InferenceServerException, match="failed to load"):
        own.load_model("nb", config='{"nonsense": 1}')
    with pytest.raises(InferenceServerException, match="failed to load"):
        own.load_model("nope")
    assert own.is_model_ready("nb")


def test_statistics_traces_and_logs(own):
    for _ in range(3):
        own.infer("m", [_input("x", X)])
    (stats,) = own.get_inference_statistics("m", "2", as_json=True)["model_stats"]
    assert (int(stats["inference_count"]), int(stats["inference_stats"]["success"]["count"])) == (6, 3)
    assert own.get_trace_settings(as_json=True)["settings"]["trace_level"]["value"] == ["OFF"]
    changed = own.update_trace_settings(settings={"trace_level": "TIMESTAMPS", "trace_rate": "1"}, as_json=True)
    assert changed["settings"]["trace_level"]["value"] == ["TIMESTAMPS"]
    assert own.get_log_settings(as_json=True)["settings"]["log_error"]["bool_param"]
    changed = own.update_log_settings({"log_verbose_level": 1}, as_json=True)
    assert changed["settings"]["log_verbose_level"]["uint32_param"] == 1
