"""The real server in a process of its own: start, answers, stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest

from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client, ClientError

from .several_workers import TWO, serve_once

X = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)


#: Wrong options, and what one line says of them; of several workers, too.
WRONG = [
    (["--repository", "/nowhere"], "does not exist"),
    (["--repository", "{repository}", "--device", "tpu"], "use cpu, cuda, cuda:N"),
    (["--repository", "{repository}", "--listen", "8001"], "is not host:port"),
]


def test_it_prints_models_versions_device_and_address(start, repository):
    with start(repository) as server:
        printed = "\n".join(server.lines)
    assert "m version 1: x FP32[-1,4] -> y FP32[-1,4], z FP32[-1,4] on cpu" in printed
    assert "m version 2: " in printed
    assert f"listening on {server.address} (gRPC), ready" in printed
    assert server.lines[-1] == "stopped"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_line_at_the_start_says_where_traces_go(start, repository, monkeypatch, workers):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra otel is not installed")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with start(repository, "--workers", workers) as server:
        pass
    assert next(line for line in server.lines if "traces" in line) == "traces go to http://127.0.0.1:9 (OTLP, grpc)"
    assert sum("traces go to" in line for line in server.lines) == 1


def test_our_client_gets_arrays_by_name(address):
    with Client(address) as client:
        assert client.is_live()
        assert client.is_ready()
        assert client.is_model_ready("m")
        assert not client.is_model_ready("nope")
        assert client.server_metadata().name == "normfold"
        metadata = client.model_metadata("m")
        assert metadata.versions == ("1", "2")
        assert [(t.name, t.datatype, t.shape) for t in metadata.inputs] == [("x", "FP32", (-1, 4))]
        answer = client.infer("m", {"x": X})
        assert list(answer) == ["y", "z"]
        np.testing.assert_array_equal(answer["y"], 3 * X)
        np.testing.assert_array_equal(client.infer("m", {"x": X}, version="1", outputs=["y"])["y"], 2 * X)


def test_our_client_swaps_big_endian_arrays(address):
    with Client(address) as client:
        np.testing.assert_array_equal(client.infer("nb", {"x": X.astype(">f4")})["y"], 2 * X)


def test_our_client_takes_strided_and_read_only_arrays(address):
    wide = np.arange(16, dtype=np.float32).reshape(2, 8)
    wide.setflags(write=False)
    with Client(address) as client:
        np.testing.assert_array_equal(client.infer("nb", {"x": wide[:, ::2]})["y"], 2 * wide[:, ::2])


def test_our_client_takes_text(address):
    with Client(address) as client:
        answer = client.infer("text", {"x": np.array([["é", "b"]])})
    assert answer["y"].tolist() == [["é".encode(), b"b"]]


def test_our_client_names_a_dtype_without_a_datatype(address):
    with Client(address) as client, pytest.raises(ValueError, match="'x' has dtype complex64"):
        client.infer("nb", {"x": np.zeros((1, 4), np.complex64)})


def test_a_refused_call_is_an_exception_with_status_and_details(address):
    with Client(address) as client, pytest.raises(ClientError, match="did you mean 'two'") as caught:
        client.infer("tow", {"x": X})
    assert caught.value.status is grpc.StatusCode.NOT_FOUND


def test_no_server_is_an_exception_that_says_how_to_start_one():
    with Client("127.0.0.1:1") as client, pytest.raises(ClientError, match="normfold serve") as caught:
        client.is_live(timeout=10)
    assert caught.value.status is grpc.StatusCode.UNAVAILABLE


def test_async_client_keeps_many_calls_on_their_way(address):
    async def ask() -> list:
        async with AsyncClient(address) as client:
            assert await client.is_live()
            assert await client.is_ready()
            assert await client.is_model_ready("two")
            assert (await client.server_metadata()).name == "normfold"
            assert (await client.model_metadata("two")).name == "two"
            calls = [client.infer("two", {"a": X * i, "b": X}) for i in range(50)]
            return await asyncio.gather(*calls)

    for number, answer in enumerate(asyncio.run(ask())):
        np.testing.assert_array_equal(answer["s"], X * number + X)
        np.testing.assert_array_equal(answer["d"], X * number - X)


def test_classes_come_with_labels_best_first(address):
    with Client(address) as client:
        rows = client.classify("m", {"x": X}, top=2)
    assert [[(c.score, c.index, c.label) for c in row] for row in rows] == [
        [(12.0, 3, "d"), (9.0, 2, "c")],
        [(12.0, 0, "a"), (9.0, 1, "b")],
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_is_on_its_way_and_exits_with_0(start, repository, number, frontend):
    with start(repository, "--frontend", frontend) as server, Client(server.address) as client:
        failures: list[Exception] = []
        stopping = threading.Event()

        def ask() -> None:
            while not stopping.is_set():
                try:
                    np.testing.assert_array_equal(client.infer("m", {"x": X})["y"], 3 * X)
                except ClientError as error:
                    if error.status is not grpc.StatusCode.UNAVAILABLE:
                        failures.append(error)
                    return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        code = server.stop(number)
        stopping.set()
        for thread in threads:
            thread.join()
    assert code == 0
    assert failures == []


def test_a_port_in_use_is_one_line_and_an_exit_code(repository, frontend):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = serve_once("--repository", str(repository), "--listen", listen, "--frontend", frontend)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_two_servers_do_not_share_a_port(start, repository, frontend):
    with start(repository, "--frontend", frontend) as server:
        done = serve_once("--repository", str(repository), "--listen", server.address, "--frontend", frontend)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *WRONG,
        *(([*options, *TWO], said) for options, said in WRONG),
        (["--repository", "{repository}", "--listen", "unix:/tmp/s", *TWO], "a unix socket is served by one worker"),
        (
            ["--repository", "{repository}", "--tokens", "/two\nlines\x1b[31m"],
            r"--tokens /two\nlines\x1b[31m cannot be read",
        ),
        (["--repository", "{repository}", "--name", "x"], "a name can only be given to a single model"),
        (["--repository", "{repository}/m/1"], "holds no model"),
    ],
)
def test_what_cannot_be_served_is_one_line(repository, options, said):
    done = serve_once(*(option.format(repository=repository) for option in options))
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("device", "name"), [("cuda", "CUDA"), ("tensorrt:1", "TensorRT")])
def test_a_gpu_without_cuda_is_an_error_that_names_the_build(repository, device, name):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built with CUDA")
    done = serve_once("--repository", str(repository), "--device", device)
    assert done.returncode == 3
    assert f"built without {name}" in done.stderr
    assert "normfold[gpu]" in done.stderr


def test_auto_without_cuda_runs_on_the_cpu_and_says_so(start, repository):
    with start(repository, "--device", "auto") as server:
        assert any(line.endswith("on cpu") for line in server.lines)


@pytest.mark.parametrize("which", ["model", "file"])
def test_one_models_folder_and_one_file_are_repositories_too(start, repository, which):
    path = repository / "nb" if which == "model" else repository / "nb" / "1" / "model.onnx"
    name = "nb" if which == "model" else "model"
    with start(path) as server, Client(server.address) as client:
        np.testing.assert_array_equal(client.infer(name, {"x": X})["y"], 2 * X)
    with start(path, "--name", "other") as server, Client(server.address) as client:
        np.testing.assert_array_equal(client.infer("other", {"x": X})["y"], 2 * X)


def test_serving_never_imports_torch_or_onnx(repository):
    script = f"""
import asyncio, sys
from pathlib import Path
from normfold.serving.server import Server
from normfold.serving.settings import ServerConfig
from normfold.serving.client.client import Client
import normfold.cli.serve, normfold.cli.infer
async def main():
    server = Server(ServerConfig(Path({str(repository)!r}), listen="127.0.0.1:0"))
    await server.start()
    assert server.catalog.ready(True)
    await server.shut_down()
asyncio.run(main())
print(sorted({{"torch", "onnx", "onnx_ir", "onnxscript"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_client_needs_no_onnxruntime():
    script = "import normfold.serving.client.client, sys; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_a_stream_ends_with_the_server(start, repository):
    """A stream that stays open does not keep the server from stopping, and its requests are answered."""
    from normfold.protos import grpc_service as pb

    with start(repository) as server, grpc.insecure_channel(server.address) as channel:
        request = pb.ModelInferRequest(model_name="nb", raw_input_contents=[X.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=X.shape)
        more = threading.Event()

        def requests():
            yield request
            more.wait(30)

        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(requests())
        assert next(call).error_message == ""
        assert server.stop() == 0
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        more.set()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "Server exiting" in caught.value.details()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_log_that_nobody_reads_keeps_no_call_and_no_end_waiting(repository, workers):
    command = [sys.executable, "-m", "normfold", "serve", "--repository", str(repository), "--listen", "127.0.0.1:0"]
    options = ["--workers", workers, "--access-log", "all"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("listening on"))
        with Client(line.split()[2], timeout=30) as client:
            for _ in range(900):  # each has a line of 110 bytes, and the pipe takes 64 KB
                assert client.is_live()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()
