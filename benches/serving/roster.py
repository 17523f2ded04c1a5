"""The servers that are measured: how each is started on a port, and how it is called."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from benches.serving.http1 import HttpCalls
from benches.serving.networks import MAX_BATCH, publish, tiny

from normfold.protos import grpc_service as pb
from normfold.serving.client.calls import arrays, infer_request
from normfold.serving.load.calls import Calls, UnaryCalls

PROGRAMS = Path(__file__).resolve().parent / "programs"
REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
#: Our servers, one for each frontend.
FRONTENDS = ("normfold, grpcio", "normfold, http2")
X = np.random.default_rng(0).standard_normal((1, 1, 32)).astype(np.float32)
CONFIG = f"""max_batch_size: {MAX_BATCH}
input {{ name: "x" data_type: TYPE_FP32 dims: [1, 32] }}
output {{ name: "y" data_type: TYPE_FP32 dims: [10] }}
instance_group {{ count: 1 kind: KIND_CPU }}
dynamic_batching {{}}
"""


@dataclass(frozen=True)
class Command:
    """A program to start."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """A server. ``command`` takes the Python of its environment, a folder for its files, and two ports."""

    name: str
    #: The file in requirements/ from which its environment is made; None if it runs in ours.
    environment: str | None
    command: Callable[[Path, Path, int, int], Command]
    calls: Callable[[str], Calls]
    #: Asks the server at an address for ``tiny`` of ``X`` once; None for a server without a model.
    answer: Callable[[str], np.ndarray[Any, Any]] | None = None
    #: Why it cannot run here; None if it can.
    missing: str | None = None


def ask_grpc(address: str) -> Calls:
    """Return calls of ModelInfer with the request that every gRPC server gets."""
    return UnaryCalls(address, [infer_request("tiny", {"x": X}, None, "", "").SerializeToString()])


def ask_bytes(address: str) -> Calls:
    """Return calls that POST the bytes of the tensor."""
    return HttpCalls(address, "/inference", "application/octet-stream", X.tobytes())


def ask_json(address: str) -> Calls:
    """Return calls that POST the tensor as JSON."""
    return HttpCalls(address, "/predict", "application/json", json.dumps({"x": X.tolist()}).encode())


def answer_grpc(address: str) -> np.ndarray[Any, Any]:
    """Return the answer of a gRPC server."""
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        data = ask(infer_request("tiny", {"x": X}, None, "", "").SerializeToString(), timeout=60)
    return arrays(pb.ModelInferResponse.FromString(data))["y"]


def answer_bytes(address: str) -> np.ndarray[Any, Any]:
    """Return the answer to the bytes of the tensor."""
    with urllib.request.urlopen(f"http://{address}/inference", X.tobytes(), timeout=60) as answer:
        return np.frombuffer(answer.read(), np.float32).reshape(1, -1)


def answer_json(address: str) -> np.ndarray[Any, Any]:
    """Return the answer to the tensor as JSON."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://{address}/predict", json.dumps({"x": X.tolist()}).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.array(json.loads(answer.read())["y"], np.float32)


def normfold(python: Path, folder: Path, port: int, other: int, frontend: str) -> Command:
    """``normfold serve`` over a repository with ``tiny`` in the folder."""
    publish(tiny(), folder / "repository" / "tiny", CONFIG)
    return serve(folder / "repository", port, "--frontend", frontend)


def serve(repository: Path, port: int, *options: str) -> Command:
    """``normfold serve`` of this environment, in one process as the other servers."""
    arguments = [sys.executable, "-m", "normfold", "serve", "--repository", str(repository)]
    arguments += ["--workers", "1"]
    return Command([*arguments, "--listen", f"127.0.0.1:{port}", "--log-level", "error", *options])


def echo(python: Path, folder: Path, port: int, other: int) -> Command:
    """A grpc.aio server that gives bytes back."""
    return Command([str(python), str(PROGRAMS / "echo.py"), str(port)])


def kserve(python: Path, folder: Path, port: int, other: int) -> Command:
    """KServe's ModelServer, one worker."""
    return Command([str(python), str(PROGRAMS / "kserve_app.py"), str(port), str(other), str(_onnx(folder))])


def mlserver(python: Path, folder: Path, port: int, other: int) -> Command:
    """MLServer without worker processes, which cost it a hop to another process."""
    settings = {"host": "127.0.0.1", "grpc_port": port, "http_port": other, "parallel_workers": 0, "debug": False}
    settings |= {"metrics_endpoint": None}
    model = {"name": "tiny", "implementation": "mlserver_model.Tiny", "parameters": {"uri": str(_onnx(folder))}}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    return Command([str(python.with_name("mlserver")), "start", str(folder)], {"PYTHONPATH": str(PROGRAMS)})


def litserve(python: Path, folder: Path, port: int, other: int) -> Command:
    """LitServe, one worker."""
    return Command([str(python), str(PROGRAMS / "litserve_app.py"), str(port), str(_onnx(folder))])


def mosec(python: Path, folder: Path, port: int, other: int) -> Command:
    """mosec, one worker that gets batches."""
    model = {"NORMFOLD_BENCH_MODEL": str(_onnx(folder))}
    arguments = [str(python), str(PROGRAMS / "mosec_app.py"), "--port", str(port), "--address", "127.0.0.1"]
    return Command([*arguments, "--path", str(folder / "ipc"), "--log-level", "warning"], model)


def triton(python: Path, folder: Path, port: int, other: int) -> Command:
    """The tritonserver of nvidia-pytriton's wheel with a model of its Python backend.

    The stub of the backend brings its own libpython 3.11, but no standard library: it uses the system's.
    """
    site = next((python.parents[1] / "lib").glob("python3.*/site-packages"))
    home = site / "pytriton" / "tritonserver"
    backends = folder / "backends"
    if not backends.exists():
        shutil.copytree(home / "backends", backends)
        shutil.copy(home / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backends / "python")
    version = folder / "repository" / "tiny" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version.parent / "config.pbtxt").write_text(f'name: "tiny"\nbackend: "python"\n{CONFIG}', encoding="utf-8")
    shutil.copy(PROGRAMS / "triton_model.py", version / "model.py")
    shutil.copy(_onnx(folder), version / "model.onnx")
    (version / "paths.txt").write_text(f"{site}\n{PROGRAMS}\n", encoding="utf-8")
    binary = home / "bin" / "tritonserver"
    arguments = [str(binary), f"--model-repository={folder / 'repository'}", f"--backend-directory={backends}"]
    arguments += [f"--grpc-port={port}", "--grpc-address=127.0.0.1", "--allow-http=0", "--allow-metrics=0"]
    arguments += ["--model-control-mode=explicit", "--load-model=tiny"]
    libraries = [str(site / "nvidia_pytriton.libs"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return Command(arguments, {"LD_LIBRARY_PATH": ":".join(libraries), "PYTHONHOME": _system_python()})


def peers() -> list[Peer]:
    """Return all servers; echo is the first."""
    return [
        Peer("grpcio echo", "echo", echo, ask_grpc),
        Peer(FRONTENDS[0], None, partial(normfold, frontend="grpcio"), ask_grpc, answer_grpc),
        Peer(FRONTENDS[1], None, partial(normfold, frontend="http2"), ask_grpc, answer_grpc),
        Peer("Triton", "triton", triton, ask_grpc, answer_grpc, _no_triton()),
        Peer("MLServer", "mlserver", mlserver, ask_grpc, answer_grpc),
        Peer("KServe", "kserve", kserve, ask_grpc, answer_grpc),
        Peer("LitServe", "litserve", litserve, ask_json, answer_json),
        Peer("mosec", "mosec", mosec, ask_bytes, answer_bytes),
    ]


def _onnx(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tiny.onnx"
    file.write_bytes(tiny().SerializeToString())
    return file


def _system_python() -> str:
    """Return the prefix of a standard library of Python 3.11, which the stub needs; "" if there is none."""
    prefixes = [Path("/usr"), Path("/usr/local"), Path(sys.base_prefix)]
    return str(next((p for p in prefixes if (p / "lib" / "python3.11" / "os.py").is_file()), ""))


def _no_triton() -> str | None:
    return None if _system_python() else "its Python backend needs the standard library of a Python 3.11"
