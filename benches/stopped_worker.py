"""The calls that are lost when one of two workers is asked to stop."""

from __future__ import annotations

import collections
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import grpc
import numpy as np
from tests.e2e.conftest import SCALE, running, write_model

from normfold.protos import grpc_service as pb
from normfold.serving.load.processes import listeners, tree

#: Each client has a connection of its own.
LOCAL = ("grpc.use_local_subchannel_pool", 1)


def stopped_worker(name: str) -> str:
    """SIGTERM to one of two workers, four times, while eight clients call."""
    root = Path(tempfile.mkdtemp())
    write_model(root / "m", SCALE.replace("FACTOR", "2.0"))
    x = np.ones((1, 4), np.float32)
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    data, found, stopping = request.SerializeToString(), collections.Counter[str](), threading.Event()

    def ask(address: str) -> None:
        with grpc.insecure_channel(address, [LOCAL, ("grpc.initial_reconnect_backoff_ms", 50)]) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            while not stopping.is_set():
                try:
                    infer(data, timeout=30)
                    found["answered"] += 1
                except grpc.RpcError as error:
                    found[error.code().name] += 1

    with running(root, "--workers", "2", "--frontend", name) as server:
        threads = [threading.Thread(target=ask, args=(server.address,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for turn in range(4):
            workers = sorted(set(tree([server.process.pid])) - {server.process.pid})
            time.sleep(0.5)
            os.kill(workers[turn % 2], signal.SIGTERM)
            while set(listeners(server.address)) & {workers[turn % 2]} or len(listeners(server.address)) < 2:
                time.sleep(0.05)
        time.sleep(1)
        stopping.set()
        for thread in threads:
            thread.join()
    lost = sum(found.values()) - found["answered"]
    return f"{lost} of {sum(found.values()):,} calls lost"
