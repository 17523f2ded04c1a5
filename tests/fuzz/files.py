"""Files of a repository: each is loaded, or refused with a sentence, and the server goes on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import onnx
from google.protobuf import text_format
from onnx import parser
from tests.fuzz.grammar import Grammar
from tests.reliability.servers import CONFIG, model

from normfold.protos import grpc_service as pb
from normfold.protos import model_config as mc

#: A load that takes longer hangs.
SECONDS = 60.0
LOAD = "/inference.GRPCInferenceService/RepositoryModelLoad"

HEAD = '<ir_version: 9, opset_import: ["": 18]>'
#: Good models of a few hundred bytes, each with other parts of the format.
GRAPHS = (
    HEAD + """ net (float[N,2,8] x) => (float[N,3] y)
    <float[3,2,3] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, float[3] b = {1,2,3}> {
        c = Conv <kernel_shape = [3], pads = [1,1]> (x, w, b)
        r = Relu (c)
        p = GlobalAveragePool (r)
        y = Flatten (p)
    }""",
    HEAD + """ cut (float[N,4] x) => (float[N,2] y) <int64[1] s = {0}, int64[1] e = {2}, int64[1] a = {1}> {
        y = Slice (x, s, e, a)
    }""",
    HEAD + """ words (string[N,2] x) => (string[2,N] y) { y = Transpose <perm = [1,0]> (x) }""",
    HEAD + """ rows (float[N,4] x, int64[2] s) => (float[M,K] y) { y = Reshape (x, s) }""",
)  # fmt: skip
CONFIGS = (
    CONFIG,
    """name: "fuzzed" max_batch_size: 8
dynamic_batching { preferred_batch_size: [4, 8] max_queue_delay_microseconds: 100 priority_levels: 2
  default_priority_level: 1 default_queue_policy { max_queue_size: 16 timeout_action: DELAY } }
instance_group [{ count: 2 kind: KIND_CPU }]
input { name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: [4] } }
output [{ name: "y" data_type: TYPE_FP32 dims: 4 }, { name: "z" data_type: TYPE_FP32 dims: 4 }]
version_policy { specific { versions: [1] } } response_cache { enable: true }
model_warmup { name: "w" batch_size: 2 count: 2
  inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
optimization { graph { level: 1 } }
""",
)


@dataclass
class Loads:
    """How many files loaded and were refused, and each whose load did something else."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def drawn_models(cases: int, seed: int) -> Iterator[bytes]:
    """Good models with a few fields changed, or with a few bytes changed."""
    chance = random.Random(seed)
    grammar = Grammar(chance, ("x", "y", "z", "c", "w", "Conv", "Relu", "Mul", "Identity", "ai.onnx", "N"))
    good = [onnx.load_from_string(model(1)), *(parser.parse_model(graph) for graph in GRAPHS)]
    for _ in range(cases):
        message = chance.choice(good)
        if chance.random() < 0.5:
            yield grammar.broken(message.SerializeToString(deterministic=True))
        else:
            yield grammar.changed(message).SerializeToString(deterministic=True)


def drawn_configs(cases: int, seed: int) -> Iterator[bytes]:
    """Configurations that were drawn, and good ones with a few fields, words or bytes changed."""
    chance = random.Random(seed)
    grammar = Grammar(chance, ("onnxruntime", "onnxruntime_onnx", "fuzzed", "labels.txt", "1", "intra_op_thread_count"))
    for _ in range(cases):
        kind, text = chance.randrange(4), chance.choice(CONFIGS)
        if kind == 0:
            yield grammar.broken(text.encode())
        elif kind == 1:
            words = text.split(" ")
            at = chance.randrange(len(words))
            words[at] = chance.choice((*words, "", "{", "}", "[", "-1", "4294967295", "1e400", '"', "#", "'\\777'"))
            yield " ".join(words).encode()
        elif kind == 2:
            changed = grammar.changed(text_format.Parse(text, mc.ModelConfig()))
            yield text_format.MessageToString(changed).encode()
        else:
            yield text_format.MessageToString(grammar.draw(mc.ModelConfig)).encode()


def fuzz_models(address: str, cases: int, seed: int = 0) -> Loads:
    """Load drawn model files, which are sent with the request."""
    found = Loads()
    with grpc.insecure_channel(address) as channel:
        for data in drawn_models(cases, seed):
            request = pb.RepositoryModelLoadRequest(model_name="fuzzed")
            request.parameters["config"].string_param = "{}"
            request.parameters["file:1/model.onnx"].bytes_param = data
            _load(channel, request, data, found)
    return found


def fuzz_configs(address: str, repository: Path, cases: int, seed: int = 0) -> Loads:
    """Load a good model with drawn files config.pbtxt."""
    folder = repository / "fuzzed"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.onnx").write_bytes(model(1))
    (folder / "labels.txt").write_text("a\nb\nc\nd\n")
    found = Loads()
    with grpc.insecure_channel(address) as channel:
        for data in drawn_configs(cases, seed):
            (folder / "config.pbtxt").write_bytes(data)
            _load(channel, pb.RepositoryModelLoadRequest(model_name="fuzzed"), data, found)
    return found


def _load(channel: grpc.Channel, request: pb.RepositoryModelLoadRequest, data: bytes, found: Loads) -> None:
    call = channel.unary_unary(
        LOAD,
        request_serializer=pb.RepositoryModelLoadRequest.SerializeToString,
        response_deserializer=pb.RepositoryModelLoadResponse.FromString,
    )
    try:
        call(request, timeout=SECONDS)
    except grpc.RpcError as error:
        found.counts["refused"] += 1
        if fault := _fault(error):
            found.faults.append(f"{fault}: {data.hex()}")
        return
    found.counts["loaded"] += 1


def _fault(error: grpc.RpcError) -> str:
    """What is wrong with a refusal; "" if it is a sentence."""
    status, details = error.code(), error.details() or ""
    if status not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT):
        return f"{status.name}: {details}"
    no_sentence = "internal error, id" in details or "the log has the details" in details or "Traceback" in details
    return details if no_sentence or len(details) < 20 else ""
