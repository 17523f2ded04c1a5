"""From a repository to models that answer: warm-up, labels, settings, and the reasons why a model does not load."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from onnx import TensorProto, helper, parser

from normfold.protos.datatypes import by_dtype
from normfold.serving.catalog import load as loading
from normfold.serving.catalog import warmup
from normfold.serving.catalog.catalog import Catalog
from normfold.serving.catalog.config import parse
from normfold.serving.catalog.load import LoadOptions
from normfold.serving.catalog.repository import ModelFolder, Repository
from normfold.serving.errors import (
    DeviceUnavailable,
    LoadError,
    LoadRefused,
    OutOfMemory,
    PollFailed,
    ServingError,
    StartError,
)
from normfold.serving.process.memory import allocated_bytes, resident_bytes
from normfold.serving.process.memory_limit import MemoryBudget
from normfold.serving.runtime import limited_arena, run_memory, session
from normfold.serving.runtime.devices import Device
from normfold.serving.settings import ServerConfig

OPTIONS = LoadOptions(Device("cpu"), cpus=4, inline_seconds=1.0)
HEAD = '<ir_version: 9, opset_import: ["": 18]>'
CONV = HEAD + " g (float[N,3,L] x) => (float[N,3,M] y) { y = AveragePool <kernel_shape = [5]> (x) }"
WARM = 'model_warmup { name: "w" batch_size: 2 count: 3 inputs { key: "x" value { %s } } }'


@pytest.fixture
def load(tmp_path):
    """Load version 1 of the model in the test's folder."""
    with ThreadPoolExecutor(1) as executor:
        yield lambda config="", options=OPTIONS: loading.load(
            ModelFolder("m", tmp_path), parse(config), 1, options, executor
        )


@pytest.fixture
def runs(monkeypatch):
    """The shapes that sessions were run with."""
    seen: list[tuple[int, ...]] = []
    real = session.Session.run

    def run(self, feeds, outputs):
        seen.append(feeds["x"].shape)
        return real(self, feeds, outputs)

    monkeypatch.setattr(session.Session, "run", run)
    return seen


def timed(loaded, shape):
    """Whether runs were timed with inputs of ``shape``, and with no others."""
    before = len(loaded.scheduler.times)
    loaded.scheduler.times.of({"x": np.zeros(shape, np.float32)})
    return before == len(loaded.scheduler.times) == 1


def test_a_model_of_known_shape_is_warm_before_it_is_ready(load, tmp_path, models, runs):
    models.write(tmp_path, models.scale())
    loaded = load()
    assert set(runs) == {(1, 4)}
    assert timed(loaded, (1, 4))


def test_an_input_of_more_elements_than_memory_holds_is_not_warmed(load, tmp_path, models, runs):
    models.write(tmp_path, models.identity(8, ["N", (1 << 32) - 1, 2]))  # strings
    assert load().version == 1
    assert runs == []


def test_a_model_of_open_length_is_warmed_as_the_config_says(load, tmp_path, models, runs):
    models.write(tmp_path, CONV)
    assert not len(load().scheduler.times)
    assert runs == []
    load("max_batch_size: 8 " + WARM % "data_type: TYPE_FP32 dims: [3, 9] random_data: true")
    assert runs == [(2, 3, 9)] * 3


def test_requests_for_an_output_that_had_not_the_rows_of_the_inputs_in_the_warm_up_run_alone(
    load, tmp_path, models, caplog
):
    batched = "max_batch_size: 8 dynamic_batching {}"
    models.write(tmp_path, models.scale())
    load(batched)
    assert "run alone" not in caplog.text
    models.write(tmp_path, HEAD + " g (float[N,4] x) => (int64[M,2] y) { z = NonZero (x) y = Transpose (z) }")
    load(batched)
    assert "model 'm' version 1: requests for 'y' run alone" in caplog.text


def test_a_golden_input_that_has_no_rows_and_a_default_does_not_end_batches(load, tmp_path, models, caplog):
    graph = " g (float[N,4] x, float[1] s) => (float[N,4] y) <float[1] s = {2}> { y = Mul (x, s) }"
    models.write(tmp_path, HEAD + graph)
    x = np.ones((2, 4), np.float32)
    inputs = [
        {"name": name, "datatype": "FP32", "shape": array.shape, "data": base64.b64encode(array.tobytes()).decode()}
        for name, array in (("x", x), ("s", np.ones(1, np.float32)))
    ]
    (tmp_path / "1" / "golden.json").write_bytes(_golden(x, inputs=inputs))
    load("max_batch_size: 8 dynamic_batching {}")
    assert "run alone" not in caplog.text


def test_a_model_of_open_length_is_warmed_with_its_golden_input(load, tmp_path, models, runs):
    models.write(tmp_path, CONV)
    x = np.ones((1, 3, 7), np.float32)
    (tmp_path / "1" / "golden.json").write_bytes(_golden(np.ones((1, 3, 3), np.float32), x))
    assert timed(load(), (1, 3, 7))
    assert runs == [(1, 3, 7)] * (1 + warmup.RUNS)


def test_warm_up_data_comes_from_a_file_too(load, tmp_path, models, runs):
    models.write(tmp_path, models.scale())
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "data").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    load("max_batch_size: 8 " + WARM % 'data_type: TYPE_FP32 dims: 4 input_data_file: "data"')
    assert runs == [(2, 4)] * 3


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("data_type: TYPE_FP32 dims: 5 zero_data: true", r"'x' \[2, 5\] is not x FP32\[-1,4\]"),
        ("data_type: TYPE_INT64 dims: 4 zero_data: true", "is not x FP32"),
        ("data_type: TYPE_FP32 dims: 4", "must say zero_data, random_data or input_data_file"),
        ('data_type: TYPE_FP32 dims: 4 input_data_file: "nope"', "warmup/nope cannot be read"),
        ('data_type: TYPE_FP32 dims: 4 input_data_file: "../1/model.onnx"', "does not lie in the model's folder"),
        ('data_type: TYPE_FP32 dims: 4 input_data_file: "short"', "input byte size mismatch"),
    ],
)
def test_a_warm_up_that_does_not_fit_is_a_load_error(load, tmp_path, models, entry, words):
    models.write(tmp_path, models.scale())
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "short").write_bytes(b"1234")
    with pytest.raises(LoadError, match=words):
        load("max_batch_size: 8 " + WARM % entry)


def test_a_warm_up_of_many_elements_is_a_load_error(load, tmp_path, models):
    models.write(tmp_path, CONV)
    with pytest.raises(LoadError, match="'x' has more than 67108864 elements"):
        load("max_batch_size: 8 " + WARM % "data_type: TYPE_FP32 dims: [3, 100000000] zero_data: true")


def test_a_warm_up_for_another_input_is_a_load_error(load, tmp_path, models):
    models.write(tmp_path, models.scale())
    with pytest.raises(LoadError, match=r"must give the inputs \['x'\]"):
        load('model_warmup { name: "w" inputs { key: "q" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } }')


def test_a_warm_up_that_fails_is_a_load_error(load, tmp_path, models):
    models.write(tmp_path, CONV)
    with pytest.raises(LoadError, match="warm-up failed: the model cannot take this input"):
        load("max_batch_size: 8 " + WARM % "data_type: TYPE_FP32 dims: [3, 2] zero_data: true")


@pytest.mark.parametrize("number", [TensorProto.STRING, TensorProto.BFLOAT16, TensorProto.BOOL, TensorProto.INT8])
def test_models_of_every_kind_of_input_are_warmed(load, tmp_path, models, runs, number):
    models.write(tmp_path, models.identity(number, ["N", 2]))
    load()
    assert set(runs) == {(1, 2)}


@pytest.mark.parametrize(
    ("config", "threads", "expected"),
    [
        ("", 0, 1),
        ("", 3, 3),
        ('parameters { key: "intra_op_thread_count" value { string_value: "2" } }', 3, 2),
    ],
)
def test_small_models_have_one_thread_unless_told_otherwise(load, tmp_path, models, config, threads, expected):
    models.write(tmp_path, models.scale())
    loaded = load(config, LoadOptions(Device("cpu"), 4, threads))
    assert loaded.session.settings.intra_op_threads == expected
    assert loaded.config.instance_group[0].count == 4 // expected


def test_large_models_have_all_threads(load, tmp_path, models, monkeypatch):
    models.write(tmp_path, models.scale())
    monkeypatch.setattr(loading, "SMALL_MODEL_BYTES", 10)
    assert load().session.settings.intra_op_threads == 4


def test_the_numbers_of_a_default_decide_only_where_requests_may_send_it(load, models, tmp_path):
    graph = HEAD + " g (float[N] x, int64[1] times) => (float[M] y) { y = Tile (x, times) }"
    model = parser.parse_model(graph)
    model.graph.initializer.append(helper.make_tensor("times", TensorProto.INT64, [1], [1]))
    models.write(tmp_path, model.SerializeToString())
    optional = 'input { name: "x" dims: -1 } input { name: "times" dims: 1 optional: true }'
    x, times = np.ones(4, np.float32), np.array([2])
    for config, feeds, decide in (("", {"x": x}, False), (optional, {"x": x, "times": times}, True)):
        made = load(config)
        assert made.session.numbers_decide is decide
        for _ in range(4):
            made.scheduler.times.of(feeds).note(1)
        assert made.scheduler.times.of(feeds).inline is not decide


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("instance_group { kind: KIND_GPU }", "use --device cuda"),
        ("instance_group { gpus: 1 }", r"instance_group.gpus is \[1\]"),
        ('output { name: "y" data_type: TYPE_FP32 dims: [-1, 4] label_filename: "l" }', "l cannot be read"),
        ('output { name: "y" data_type: TYPE_FP32 dims: [-1, 4] label_filename: "../l" }', "does not lie in"),
        ('output { name: "y" data_type: TYPE_FP32 dims: [-1, 4] label_filename: "b" }', "is not UTF-8 text"),
        ('default_model_filename: "other.onnx"', "1/other.onnx cannot be read"),
    ],
)
def test_what_the_config_asks_for_and_is_not_there_is_a_load_error(load, tmp_path, models, config, words):
    models.write(tmp_path, models.scale())
    (tmp_path / "b").write_bytes(b"\xff")
    with pytest.raises(LoadError, match=words):
        load(config)


def test_the_bytes_that_were_checked_are_the_bytes_that_run(load, tmp_path, models):
    data = models.scale()
    models.write(tmp_path, data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = tmp_path / "1" / "manifest.json"
    manifest.write_text(json.dumps({"schema": 1, "files": {"model.onnx": entry}}), encoding="utf-8")
    load()
    (tmp_path / "1" / "model.onnx").write_bytes(models.scale(9.0))
    with pytest.raises(LoadError, match=r"SHA-256|manifest\.json says"):
        load()


X = np.array([[1, 2, 3, 4]], np.float32)


def _golden(y: np.ndarray, x: np.ndarray = X, **changes) -> bytes:
    def tensor(name, array):
        datatype = by_dtype(array.dtype)
        data = base64.b64encode(array.tobytes()).decode()
        return {"name": name, "datatype": datatype.name, "shape": list(array.shape), "data": data}

    content = {"relative_tolerance": 1e-3, "inputs": [tensor("x", x)], "outputs": [tensor("y", y)]}
    return json.dumps({**content, **changes}).encode()


@pytest.mark.parametrize("y", [2 * X, 2 * X + 0.004])
def test_the_golden_answer_is_asked_for_again(load, tmp_path, models, y):
    models.write(tmp_path, models.scale())
    (tmp_path / "1" / "golden.json").write_bytes(_golden(y))
    load()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_golden(3 * X), "output 'y' is off the golden answer by 4, allowed is 0.012"),
        (_golden(2 * X + np.nan), "is not the golden answer where that is not finite"),
        (_golden((2 * X)[:, :3]), r"is float32\[1, 3\], the model gives float32\[1, 4\]"),
        (_golden(2 * X, X[:, :3]), "golden.json does not belong to this model"),
        (_golden(2 * X, outputs=[{"name": "q", "datatype": "FP32", "shape": [0], "data": ""}]), "no output 'q'"),
        (_golden(2 * X, inputs=[{"name": "q", "datatype": "FP32", "shape": [0], "data": ""}]), "no input 'q'"),
        (_golden(2 * X, inputs=[]), "golden.json does not belong to this model: it has no input 'x'"),
        (_golden(2 * X, outputs=[]), "golden.json cannot be read: outputs is empty"),
        (_golden(2 * X, inputs=[{"name": "x", "datatype": "FP32", "shape": [9], "data": ""}]), "cannot be read"),
        (_golden(2 * X, relative_tolerance=None), "golden.json cannot be read"),
        (_golden(2 * X, relative_tolerance=10**400), "golden.json cannot be read: "),
        (b"{", "golden.json cannot be read: it is not JSON: "),
        (b"[" * 100_000, "golden.json cannot be read: "),
        (b"3", "golden.json cannot be read: it must be an object with relative_tolerance, inputs, outputs, got int"),
        (b'{"inputs": 3}', "golden.json cannot be read: it lacks relative_tolerance, outputs"),
        (_golden(2 * X, inputs=3), "golden.json cannot be read: inputs must be a list, got int"),
        (_golden(2 * X, inputs=[3]), r"inputs\[0\] must be an object with name, datatype, shape, data, got int"),
        (_golden(2 * X, inputs=[{"name": "x"}]), r"inputs\[0\] lacks datatype, shape, data"),
        (_golden(2 * X, relative_tolerance="1"), "relative_tolerance must be a number, got str"),
        *(
            (_golden(2 * X, outputs=[{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": "", **wrong}]), words)
            for wrong, words in (
                ({"datatype": "FP33"}, r"outputs\[0\]: datatype 'FP33' is none of the protocol's"),
                ({"datatype": ["FP32"]}, "is none of the protocol's"),
                ({"shape": 4}, "shape must be a list of sizes"),
                ({"shape": [-1, -4]}, "shape must be a list of sizes"),
                ({"shape": [1e999]}, "shape must be a list of sizes"),
                ({"data": 5}, "data is not in base64"),
                ({"data": "é"}, "data is not in base64"),
            )
        ),
    ],
)
def test_another_answer_than_the_golden_one_is_a_load_error(load, tmp_path, models, content, words):
    models.write(tmp_path, models.scale())
    (tmp_path / "1" / "golden.json").write_bytes(content)
    with pytest.raises(LoadError, match=words):
        load()


def test_a_model_that_memory_does_not_hold_has_a_sentence(tmp_path, models, monkeypatch, caplog):
    models.write(tmp_path / "a", models.scale())

    def too_large(*arguments):
        raise MemoryError

    monkeypatch.setattr("normfold.serving.catalog.loader.load", too_large)
    with ThreadPoolExecutor(1) as executor:
        catalog = Catalog(Repository(tmp_path), OPTIONS, executor)
        asyncio.run(catalog.load_all())
    assert [model.reason for model in catalog.index(False)] == ["there is not enough memory to load it"]
    assert "Traceback" not in caplog.text


def test_an_unexpected_failure_of_one_model_leaves_the_others(tmp_path, models, monkeypatch):
    for name in "ab":
        models.write(tmp_path / name, models.scale())
    real = loading.load

    def broken(folder, *rest):
        if folder.name == "a":
            raise RuntimeError("secret")
        return real(folder, *rest)

    monkeypatch.setattr("normfold.serving.catalog.loader.load", broken)
    with ThreadPoolExecutor(1) as executor:
        catalog = Catalog(Repository(tmp_path), OPTIONS, executor)
        asyncio.run(catalog.load_all())
    assert catalog.find("b", "").version == 1
    assert not catalog.ready(strict=True)
    assert catalog.ready(strict=False)
    assert "secret" not in str(catalog.index(False))


def test_a_device_that_is_not_there_stops_the_start(tmp_path, models, monkeypatch):
    models.write(tmp_path / "a", models.scale())

    def absent(*_: object) -> None:
        raise DeviceUnavailable("no GPU")

    monkeypatch.setattr("normfold.serving.catalog.loader.load", absent)
    with ThreadPoolExecutor(1) as executor:
        catalog = Catalog(Repository(tmp_path), OPTIONS, executor)
        with pytest.raises(StartError, match="no GPU"):
            asyncio.run(catalog.load_all())


def test_nothing_of_a_repository_is_read_on_the_event_loop(tmp_path, models, monkeypatch):
    for name in "ab":
        models.write(tmp_path / name, models.scale(), config="max_batch_size: 4")
    threads = []
    for owner, name in (*((Path, n) for n in ("iterdir", "lstat", "open", "is_dir", "resolve")), (os, "scandir")):
        real = getattr(owner, name)

        def noted(path, *given, real=real, **options):
            if Path(path).is_relative_to(tmp_path):
                threads.append(threading.current_thread())
            return real(path, *given, **options)

        monkeypatch.setattr(owner, name, noted)
    with ThreadPoolExecutor(1) as executor:
        catalog = Catalog(Repository(tmp_path), OPTIONS, executor, ["a"])
        threads.clear()

        async def use():
            await catalog.load_all()
            await catalog.load("b")
            with pytest.raises(PollFailed):
                await catalog.load("nope")
            return catalog.index(False, await catalog.look())

        assert {row.state for row in asyncio.run(use())} == {"READY"}
    assert threads
    assert threading.main_thread() not in threads


def test_a_policy_that_picks_no_version_tells_which_there_are(tmp_path, models):
    models.write(tmp_path / "a", models.scale(), 3, "version_policy { specific { versions: 1 } }")
    with ThreadPoolExecutor(1) as executor:
        catalog = Catalog(Repository(tmp_path), OPTIONS, executor)
        with pytest.raises(LoadRefused, match=r"the version_policy chooses version 1, there are: 3"):
            asyncio.run(catalog.load("a"))
        with pytest.raises(ServingError, match=r"'a' has no available versions \(no version to serve"):
            catalog.find("a", "")


def test_swapping_under_load_never_mixes_two_versions(serve, tmp_path, models, ask):
    models.write(tmp_path / "m", models.scale(2.0), 1)
    models.write(tmp_path / "m", models.scale(3.0), 2)
    from normfold.protos import grpc_service as pb

    policies = [json.dumps({"version_policy": {"specific": {"versions": [number]}}}) for number in (1, 2)]
    with serve(tmp_path) as one:
        rpc = one.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        for swap in range(30):
            request = pb.RepositoryModelLoadRequest(model_name="m")
            request.parameters["config"].string_param = policies[swap % 2]
            calls = [rpc.future(ask("m"), timeout=30) for _ in range(20)]
            one.call("RepositoryModelLoad", request)
            for call in calls:
                answer = call.result()
                factor = {"1": 2, "2": 3}[answer.model_version]
                got = np.frombuffer(answer.raw_output_contents[0], np.float32)
                np.testing.assert_array_equal(got, factor * np.array([1, 2, 3, 4]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"listen": "8001"}, r"is not host:port, .*; did you mean 127\.0\.0\.1:8001\?"),
        ({"listen": "localhost"}, "is not host:port, .*: it has no port"),
        ({"listen": "localhost:99999"}, "is not host:port, .*: '99999' is not a port from 0 to 65535"),
        ({"listen": f"localhost:{'9' * 5000}"}, "is not a port from 0 to 65535"),
        ({"listen": ":1"}, r"is not host:port, .*: it has no host; did you mean 127\.0\.0\.1:1 or"),
        ({"listen": "http://localhost:1"}, "is not host:port, .*; leave out http://"),
        ({"listen": "unix:a.sock"}, "is not host:port, .*; a path begins with /"),
        ({"threads": -1}, "--threads -1: expected"),
        ({"max_message_bytes": 1}, "--max-message-mib .*: expected"),
    ],
)
def test_a_server_is_configured_within_bounds(tmp_path, options, words):
    with pytest.raises(StartError, match=words):
        ServerConfig(tmp_path, **options)


@pytest.mark.parametrize(
    ("listen", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:/tmp/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.168.0.1:1", False),
        ("example.org:1", False),
        ("127.example.org:1", False),
    ],
)
def test_only_loopback_addresses_and_sockets_are_local(tmp_path, listen, local):
    assert ServerConfig(tmp_path, listen=listen, insecure=True).local is local


def test_a_unix_socket_is_an_address(tmp_path, models, serve, ask):
    models.write(tmp_path / "r" / "m", models.scale())
    from normfold.serving.client.client import Client

    with serve(tmp_path / "r") as one:
        assert one.server.address.startswith("127.0.0.1:")
    socket = f"unix:{tmp_path}/s"

    async def ask_there():
        from normfold.serving.server import Server

        server = Server(ServerConfig(tmp_path / "r", listen=socket))
        await server.start()
        with Client(socket) as client:
            answer = await asyncio.to_thread(client.infer, "m", {"x": np.ones((1, 4), np.float32)})
        await server.shut_down()
        return answer

    np.testing.assert_array_equal(asyncio.run(ask_there())["y"], np.full((1, 4), 2))


#: Takes rows of 100 numbers, and makes 6,400 of each; its file says any length.
OF_100 = (
    HEAD
    + """ g (float[N,L] x) => (float[N] y) <int64[1] n = {100}, int64[3] s = {1,1,64}, int64[2] axes = {1,2},
        int64[1] last = {2}> {
    hundred = ConstantOfShape <value = float[1] {1.0}> (n)
    wide = ConstantOfShape <value = float[1] {0.5}> (s)
    a = Add (x, hundred)
    b = Unsqueeze (a, last)
    c = Mul (b, wide)
    d = Neg (c)
    y = ReduceSum <keepdims = 0> (d, axes)
}"""
)


@pytest.mark.skipif(allocated_bytes() is None, reason="the C library does not count its memory")
@pytest.mark.parametrize("config", ["", "max_batch_size: 65536"])
def test_runs_of_a_model_of_which_no_input_is_known_have_a_limit_and_leave_no_memory(load, tmp_path, models, config):
    """A request of 12 MB took 890 MiB under a limit of 500, and the server kept them."""
    models.write(tmp_path, OF_100)
    made = load(config, replace(OPTIONS, budget=MemoryBudget(resident_bytes() + (128 << 20))))
    before = allocated_bytes()
    for count in (1 << 10, 1 << 14, 1 << 10):
        with pytest.raises(OutOfMemory) if count == 1 << 14 else contextlib.nullcontext():
            assert made.run({"x": np.ones((count, 100), np.float32)}, ["y"])[0].tolist() == [-6400] * count
        assert allocated_bytes() - before < 8 << 20
    x = np.ones((session.SMALL_BYTES // 400, 100), np.float32)
    made.run({"x": x}, ["y"])
    assert allocated_bytes() - before > 4 << 20  # a small run keeps its memory for the next one, ...
    limited_arena.give_back()
    assert allocated_bytes() - before < 4 << 20  # ... until the server is idle
    x = x[:2]
    assert made.session.bind({"x": x}, {"y": np.zeros(2, np.float32)}) is not None  # small ones are as fast as others


def test_where_the_c_library_does_not_count_its_memory_a_model_is_loaded_once(load, tmp_path, models, monkeypatch):
    """No model is measured there, and all of them would give back the memory of their runs."""
    for module in (loading, run_memory):
        monkeypatch.setattr(module, "allocated_bytes", lambda: None)
    made = Mock(side_effect=session.Session)
    monkeypatch.setattr(loading, "Session", made)
    models.write(tmp_path, models.scale())
    assert not load("", replace(OPTIONS, budget=MemoryBudget(1 << 40), cpus=1)).session.settings.unmeasured
    assert made.call_count == 1
