"""Messages for every unary method: each is answered right, or refused with a status of the caller's mistake."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError, Message
from onnx import parser
from tests.fuzz.calls import Answer, Calls, prefixed
from tests.fuzz.grammar import Grammar
from tests.reliability.load import factor
from tests.reliability.servers import CONFIG, write_repository, write_version

from normfold.protos import grpc_service as pb
from normfold.protos import health
from normfold.serving.errors import Status

INFER = "/inference.GRPCInferenceService/ModelInfer"
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
#: Unary methods and their requests. What changes the models that are asked is not among them.
METHODS: dict[str, type[Message]] = {
    f"/{SERVICE.full_name}/{method.name}": getattr(pb, method.input_type.name)
    for method in SERVICE.methods
    if method.name not in ("ModelStreamInfer",)
} | {"/grpc.health.v1.Health/Check": health.HealthCheckRequest}

#: What a caller's mistake may have.
MINE = {Status.INVALID_ARGUMENT, Status.NOT_FOUND, Status.UNAVAILABLE, Status.UNIMPLEMENTED, Status.ALREADY_EXISTS}
#: Methods that refuse with INTERNAL, because Triton does; their details are a sentence, never an id.
AS_TRITON = ("RepositoryModelLoad", "RepositoryModelUnload", "SharedMemoryRegister", "SharedMemoryStatus")

TEXT = '<ir_version: 9, opset_import: ["": 18]> t (string[N,2] x) => (string[N,2] y) { y = Identity (x) }'
MODELS = ("good", "batched", "text")


def write_models(root: Path) -> Path:
    """A repository with the models that are asked; "spare" is for methods that load and unload."""
    write_repository(root)
    write_version(root / "batched", 1)
    (root / "batched" / "config.pbtxt").write_text(
        'max_batch_size: 8 dynamic_batching {} input { name: "x" data_type: TYPE_FP32 dims: 4 }'
    )
    write_version(root / "text", 1, parser.parse_model(TEXT).SerializeToString())
    write_version(root / "spare", 1)
    assert CONFIG
    return root


def bases() -> list[pb.ModelInferRequest]:
    """Good requests."""
    found = []
    for name in ("good", "batched"):
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        raw = pb.ModelInferRequest(model_name=name, id="7", raw_input_contents=[x.tobytes()])
        raw.inputs.add(name="x", datatype="FP32", shape=[2, 4])
        typed = pb.ModelInferRequest(model_name=name, model_version="1")
        typed.inputs.add(name="x", datatype="FP32", shape=[2, 4]).contents.fp32_contents.extend(x.ravel())
        typed.outputs.add(name="y")
        found += [raw, typed]
    text = pb.ModelInferRequest(model_name="text")
    text.inputs.add(name="x", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"a", b"bc"])
    return [*found, text]


def drawn(path: str, grammar: Grammar) -> bytes:
    """The bytes of a request for ``path``: drawn, or a good one that was changed, and sometimes broken as bytes."""
    kind = METHODS[path]
    if path == INFER and grammar.chance.random() < 0.8:
        message: Message = grammar.changed(grammar.chance.choice(bases()))
    else:
        message = grammar.draw(kind)
    data = message.SerializeToString(deterministic=True)
    return grammar.broken(data) if grammar.chance.random() < 0.3 else data


@dataclass
class Found:
    """How many were answered and refused, and a sentence for each that was neither."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def fuzz_messages(address: str, cases: int, seed: int = 0) -> Found:
    """Send ``cases`` requests, half of them to ModelInfer."""
    chance = random.Random(seed)
    grammar = Grammar(chance, MODELS)
    admin = Grammar(chance, ("spare",))
    found = Found()
    paths = list(METHODS)
    left = cases
    while left > 0:
        path = INFER if chance.random() < 0.5 else chance.choice(paths)
        block = min(left, 64)
        chosen = admin if "Repository" in path or "Setting" in path else grammar
        bodies = [drawn(path, chosen) for _ in range(block)]
        calls = Calls(address, path)
        for body, answer in zip(bodies, calls.answers([prefixed(body) for body in bodies]), strict=True):
            fault = judge(path, body, answer)
            name = Status(answer.status).name if answer.status >= 0 else "no answer"
            found.counts[name] += 1
            if fault:
                found.faults.append(f"{path} {body.hex()}: {fault}")
        calls.close()
        left -= block
    return found


def judge(path: str, body: bytes, answer: Answer) -> str:
    """What is wrong with an answer; "" if it is right, or a clean refusal."""
    if answer.status == Status.OK:
        return _wrong(body, answer.data) if path == INFER else ""
    if answer.status in MINE and answer.details:
        return "" if answer.details.isprintable() or "\n" in answer.details else "details that cannot be printed"
    if answer.status == Status.INTERNAL and path.endswith(AS_TRITON) and "internal error, id" not in answer.details:
        return ""
    return f"status {answer.status}: {answer.details}"


def _wrong(body: bytes, data: bytes) -> str:
    """What is wrong with the outputs of ModelInfer, where the request says plainly what they must be."""
    try:
        request = pb.ModelInferRequest.FromString(body)
    except DecodeError:
        return "bytes that are no request were answered"
    response = pb.ModelInferResponse.FromString(data)
    asked = request.inputs[0]
    if asked.parameters or any(output.parameters for output in request.outputs):
        return ""  # shared memory, classification
    if request.model_name == "text":
        sent = _strings(request.raw_input_contents[0]) if request.raw_input_contents else asked.contents.bytes_contents
        given = response.outputs[0].contents.bytes_contents or _strings(b"".join(response.raw_output_contents))
        return "" if list(sent) == list(given) else "other strings"
    x = np.frombuffer(request.raw_input_contents[0], np.float32) if request.raw_input_contents else None
    x = np.array(asked.contents.fp32_contents, np.float32) if x is None else x
    wanted = {"y": np.float32(factor(int(response.model_version))) * x, "z": -x}
    raws = list(response.raw_output_contents)
    for output in response.outputs:
        y = np.frombuffer(raws.pop(0), np.float32) if response.raw_output_contents else None
        y = np.array(output.contents.fp32_contents, np.float32) if y is None else y
        if not np.array_equal(y, wanted[output.name], equal_nan=True) or list(output.shape) != list(asked.shape):
            return f"{output.name} is wrong"
    return ""


def _strings(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = int.from_bytes(data[:4], "little")
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found
