"""Record a running Triton's answers: ``python -m tests.serving.triton.record HOST:PORT > answers.jsonl`` here.

Triton 2.51.0's server, with its Python backend, is inside the wheel nvidia-pytriton 0.7.0. It was started on the
repository that ``python -m tests.serving.triton.record --repository FOLDER --packages SITE_PACKAGES`` writes, with
``--model-control-mode=explicit --load-model=* --exit-on-error=false --disable-auto-complete-config``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from tests.serving.triton.cases import cases
from tests.serving.triton.repository import build

from normfold.protos import grpc_service as pb


def ask(channel: grpc.Channel, rpc: str, request: Any) -> dict[str, Any]:
    """What a server says: ``status`` and ``details``, or ``answer``, the response as JSON (a list for a stream)."""
    path = f"/inference.GRPCInferenceService/{rpc}"
    try:
        if rpc == "ModelStreamInfer":
            call = channel.stream_stream(
                path, pb.ModelInferRequest.SerializeToString, pb.ModelStreamInferResponse.FromString
            )
            return {"status": "OK", "answer": [json_format.MessageToDict(r) for r in call(iter(request), timeout=30)]}
        read = getattr(pb, f"{rpc}Response").FromString
        answer = channel.unary_unary(path, type(request).SerializeToString, read)(request, timeout=30)
        return {"status": "OK", "answer": json_format.MessageToDict(answer)}
    except grpc.RpcError as error:
        return {"status": error.code().name, "details": error.details()}


def portable(line: dict[str, Any]) -> dict[str, Any]:
    """``line`` without what says where Triton ran: its backend's tracebacks."""
    answer = line.get("answer")
    for model in answer.get("models", []) if isinstance(answer, dict) else []:
        if "reason" in model:
            model["reason"] = model["reason"].split(" : ")[0]
    if "details" in line:
        line["details"] = line["details"].split("\n\nAt:")[0].split("[ONNXRuntimeError]")[0]
    return line


def recorded(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a recording."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", nargs="?")
    parser.add_argument("--repository", type=Path)
    parser.add_argument("--packages", type=Path)
    options = parser.parse_args()
    if options.repository:
        build(options.repository, options.packages)
        return
    with grpc.insecure_channel(options.address) as channel:
        for name, rpc, request in cases():
            if name.startswith("index, one unloaded"):
                time.sleep(3)  # until it is
            sys.stdout.write(json.dumps(portable({"case": name, **ask(channel, rpc, request)})) + "\n")


if __name__ == "__main__":
    main()
