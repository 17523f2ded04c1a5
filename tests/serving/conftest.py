"""A repository of small models and a server over it inside the test process, asked through plain grpcio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from benches.gpu.present import NoGpu, gpus
from onnx import TensorProto, helper, parser

from normfold.protos import grpc_service as pb
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client
from normfold.serving.client.transport.choice import TRANSPORTS
from normfold.serving.frontends import FRONTENDS
from normfold.serving.runtime import placement, session
from normfold.serving.runtime.devices import CPU_PROVIDER, CUDA_PROVIDER, TENSORRT_PROVIDER
from normfold.serving.server import Server
from normfold.serving.settings import ServerConfig

HEAD = '<ir_version: 9, opset_import: ["": 18]>'

#: y = factor * x, z = -x.
SCALE = (
    HEAD
    + """ scale (float[N,4] x) => (float[N,4] y, float[N,4] z) {
        factor = Constant <value_float: float = FACTOR> ()
        y = Mul (x, factor)
        z = Neg (x)
    }"""
)
ADD_SUB = HEAD + " two (float[N,4] a, float[N,4] b) => (float[N,4] s, float[N,4] d) { s = Add (a, b) d = Sub (a, b) }"
TEXT = HEAD + " text (string[N,2] x) => (string[N,2] y) { y = Identity (x) }"
SCALE_IO = """
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 4 label_filename: "labels.txt" }
output { name: "z" data_type: TYPE_FP32 dims: 4 }
"""
M_CONFIG = "max_batch_size: 8 version_policy { all {} } dynamic_batching {}" + SCALE_IO
QUEUE_CONFIG = (
    """
max_batch_size: 8
instance_group { count: 1 kind: KIND_CPU }
dynamic_batching {
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy { max_queue_size: 2 }
  priority_queue_policy {
    key: 1
    value { timeout_action: REJECT default_timeout_microseconds: 100000 allow_timeout_override: true }
  }
}
"""
    + SCALE_IO
)


def scale(factor: float = 2.0) -> bytes:
    """A model: y = factor * x, z = -x."""
    return parser.parse_model(SCALE.replace("FACTOR", repr(factor))).SerializeToString()


def write_model(folder: Path, graph: str | bytes, version: int = 1, config: str | None = None) -> None:
    """Write one version of a model from ONNX text or bytes."""
    data = graph if isinstance(graph, bytes) else parser.parse_model(graph).SerializeToString()
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    (folder / str(version) / "model.onnx").write_bytes(data)
    if config is not None:
        (folder / "config.pbtxt").write_text(config, encoding="utf-8")


def identity(onnx_type: int, shape: list[Any] | None) -> bytes:
    """A model that gives its input back."""
    x, y = (helper.make_tensor_value_info(name, onnx_type, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


@pytest.fixture(scope="session")
def models() -> Any:
    """The functions above, for tests that write models of their own."""
    return type(
        "Models",
        (),
        {"write": staticmethod(write_model), "scale": staticmethod(scale), "identity": staticmethod(identity)},
    )


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that the conformance tests ask; one of them fails to load."""
    root = tmp_path_factory.mktemp("repository")
    for version, factor in ((1, 2.0), (2, 3.0)):
        write_model(root / "m", scale(factor), version, M_CONFIG)
    write_model(root / "nb", scale(), config="max_batch_size: 0")
    write_model(root / "queue", scale(), config=QUEUE_CONFIG)
    write_model(root / "cached", scale(), config="max_batch_size: 8 response_cache { enable: true }" + SCALE_IO)
    for name in ("m", "queue", "cached"):
        (root / name / "labels.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    write_model(root / "two", ADD_SUB, config="max_batch_size: 8")
    write_model(root / "text", TEXT)
    write_model(root / "bad", b"\x08not an onnx file")
    reshaped = HEAD + " r (float[N] x) => (float[N] y) { y = Identity (x) }"
    write_model(
        root / "reshaped",
        reshaped,
        config="""
        max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }
        output { name: "y" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }
        """,
    )
    for name, number in (("i8", TensorProto.INT8), ("f16", TensorProto.FLOAT16), ("b", TensorProto.BOOL)):
        write_model(root / name, identity(number, ["N", 2]))
    return root


@dataclass
class Fake:
    """A session as onnxruntime would give it on a GPU: it claims a provider, and may have put nodes elsewhere."""

    left: tuple[str, ...] = ()
    options: dict[str, dict[str, str]] = field(default_factory=lambda: {CUDA_PROVIDER: {"device_id": "1"}})
    providers: tuple[str, ...] = (CUDA_PROVIDER, CPU_PROVIDER)
    beside: tuple[str, ...] = ()

    def get_providers(self) -> list[str]:
        return list(self.providers)

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return self.options

    def get_provider_graph_assignment_info(self) -> list[Any]:
        def part(provider: str, operators: tuple[str, ...]) -> Any:
            nodes = [SimpleNamespace(op_type=operator, name=f"{operator}_0") for operator in operators]
            return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

        first = part(self.providers[0], ("Conv",)) if self.providers[0] != CPU_PROVIDER else part("", ())
        return [first, part(CUDA_PROVIDER, self.beside), part(CPU_PROVIDER, self.left)]

    def get_inputs(self) -> list[Any]:
        return []

    get_outputs = get_overridable_initializers = get_inputs


@pytest.fixture
def fake_session() -> type[Fake]:
    return Fake


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Any]]:
    """A machine whose GPU loads: sessions are what the test says, and what was asked of them is kept."""
    asked: list[Any] = []

    def use(made: Any) -> list[Any]:
        def create(data: bytes, options: Any, *, providers: Any, enable_fallback: bool) -> Any:
            asked.append((options, providers, enable_fallback))
            if isinstance(made, Exception):
                raise made
            return made

        monkeypatch.setattr(onnxruntime, "InferenceSession", create)
        return asked

    monkeypatch.setattr(session, "available_providers", lambda: [TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(placement, "why_not", lambda provider: "")
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    return use


@pytest.fixture
def cuda_gpus() -> int:
    """How many GPUs are here, for tests marked `cuda`; without one the test is skipped, with the reason."""
    try:
        return len(gpus())
    except NoGpu as reason:
        pytest.skip(str(reason))


@dataclass
class Running:
    """A server on a loop of its own, and a channel to it."""

    server: Server
    loop: asyncio.AbstractEventLoop
    channel: grpc.Channel

    def call(self, method: str, request: Any, response: Any = None, timeout: float = 30, **options: Any) -> Any:
        """The response of the inference service to ``request``; raises grpc.RpcError."""
        answer = response or getattr(pb, f"{method}Response")
        rpc = self.channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return rpc(request, timeout=timeout, **options)

    def infer(self, request: pb.ModelInferRequest, **options: Any) -> Any:
        """The answer of ModelInfer."""
        return self.call("ModelInfer", request, **options)

    def on_loop(self, coroutine: Any) -> Any:
        """What ``coroutine`` gives on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)


@contextlib.contextmanager
def running(repository: Path, **options: Any) -> Iterator[Running]:
    """A server over ``repository`` on a free port of this process.

    It tries no loads, and refuses no request because a busy machine makes runs slow, unless ``options`` say so.
    """
    options.setdefault("load_seconds", 0.0)
    options.setdefault("max_queue_seconds", 60.0)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> Server:
        made = Server(ServerConfig(repository, listen="127.0.0.1:0", **options))
        await made.start()
        return made

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    try:
        with grpc.insecure_channel(
            server.address,
            options=(("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)),
        ) as channel:
            yield Running(server, loop, channel)
    finally:
        asyncio.run_coroutine_threadsafe(server.shut_down(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="session")
def serve() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """``running``, for tests with servers of their own."""
    return running


@pytest.fixture(scope="session", params=FRONTENDS)
def server(repository: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    """A server of each frontend over ``repository``, shared by the tests that change nothing in it."""
    with running(repository, strict_readiness=False, frontend=request.param) as one:
        yield one


@pytest.fixture(params=FRONTENDS)
def frontend(request: pytest.FixtureRequest) -> str:
    """The name of each frontend, for tests with servers of their own."""
    return request.param


@pytest.fixture(params=TRANSPORTS)
def each_transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of each transport of our clients, which is their default during the test."""
    for kind in (Client, AsyncClient):
        monkeypatch.setitem(kind.__init__.__kwdefaults__, "transport", request.param)
    return request.param


def request(model: str = "m", version: str = "", **inputs: Any) -> pb.ModelInferRequest:
    """A request with raw FP32 inputs, by default x = [[1, 2, 3, 4]]."""
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    for name, value in (inputs or {"x": [[1, 2, 3, 4]]}).items():
        array = np.asarray(value, np.float32)
        message.inputs.add(name=name, datatype="FP32", shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return message


@pytest.fixture(scope="session")
def ask() -> Callable[..., pb.ModelInferRequest]:
    """``request``, for building requests."""
    return request
