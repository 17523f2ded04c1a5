"""A load that checks every answer: clients with a connection each, which try again what was refused or cut."""

from __future__ import annotations

import random
import threading
import time
from types import TracebackType

import grpc
import numpy as np
from tests.reliability.outcomes import Outcomes

from normfold.protos import grpc_service as pb

#: A request that has no answer after this time, with all its attempts, is lost.
PATIENCE_SECONDS = 60.0
#: The deadline of one attempt.
ATTEMPT_SECONDS = 30.0

#: A client may try again after these.
REFUSALS = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
#: Parts of the details that grpcio's client gives to a call which the server did not answer with a status.
CONNECTIONS = ("failed to connect", "Connection refused", "Connection reset", "connections to all backends failing")
CUTS = ("Socket closed", "recvmsg", "sendmsg", "GOAWAY", "Broken pipe", "Stream removed", "RST_STREAM", "End of TCP")

#: Each request has one of these numbers of rows; the last ones are larger than a frame and than a window.
ROWS = (1, 1, 1, 2, 3, 8, 200, 1100, 9000)
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


def factor(version: int) -> float:
    """The factor of version ``version`` of the models that the load asks."""
    return 1.0 + version


def wrong(response: pb.ModelInferResponse, x: np.ndarray) -> str:
    """What is wrong with an answer to ``x``; "" where it is right: y = factor(model_version) * x, z = -x."""
    expected = {"y": np.float32(factor(int(response.model_version))) * x, "z": -x}
    names = [output.name for output in response.outputs]
    if sorted(names) != ["y", "z"]:
        return f"the outputs are {names}"
    for name, output, raw in zip(names, response.outputs, response.raw_output_contents, strict=True):
        if list(output.shape) != list(x.shape) or raw != expected[name].tobytes():
            return f"{name} of version {response.model_version} has wrong numbers or a wrong shape"
    return ""


class Load:
    """Clients that ask ``model`` until the end of the ``with`` block; ``outcomes`` has what became of it."""

    def __init__(
        self, address: str, *, clients: int = 4, model: str = "good", pause_seconds: float = 0.004, seed: int = 0
    ) -> None:
        self.address, self.model, self.pause_seconds = address, model, pause_seconds
        self.outcomes = Outcomes()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(seed + number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int, seconds: float = 240.0) -> None:
        """Wait until ``more`` further requests were answered right."""
        aim, end = self.outcomes.right + more, time.monotonic() + seconds
        while self.outcomes.right < aim:
            assert time.monotonic() < end, f"no {more} more right answers in {seconds:g} s: {self.outcomes}"
            time.sleep(0.01)

    def _client(self, seed: int) -> None:
        chance = random.Random(seed)
        numbers = np.random.default_rng(seed)
        with grpc.insecure_channel(self.address, options=OPTIONS) as channel:
            call = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            while not self._stopping.is_set():
                x = numbers.standard_normal((chance.choice(ROWS), 4), np.float32)
                self._ask(call, x)
                time.sleep(chance.random() * 2 * self.pause_seconds)

    def _ask(self, call: grpc.UnaryUnaryMultiCallable, x: np.ndarray) -> None:
        request = pb.ModelInferRequest(model_name=self.model, raw_input_contents=[x.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=x.shape)
        self.outcomes.add(sent=1)
        begun = time.monotonic()
        while True:
            try:
                response = call(request, timeout=ATTEMPT_SECONDS)
            except grpc.RpcError as error:
                if error.code() not in REFUSALS:
                    return self.outcomes.lose(f"{error.code().name}: {error.details()}")
                if time.monotonic() > begun + PATIENCE_SECONDS:
                    return self.outcomes.lose(f"no answer in {PATIENCE_SECONDS:g} s; the last: {error.details()}")
                self.outcomes.add(**{kind_of(error.details() or ""): 1})
                time.sleep(0.02)
                continue
            if why := wrong(response, x):
                return self.outcomes.lose(why)
            return self.outcomes.answered(time.monotonic() - begun)


def kind_of(details: str) -> str:
    """Whether an attempt with these status details was refused or cut.

    >>> [kind_of(details) for details in ("Server exiting", "failed to connect to all addresses", "Socket closed")]
    ['refused', 'refused', 'cut']
    """
    if any(part in details for part in CONNECTIONS) and "recvmsg" not in details:
        return "refused"
    return "cut" if any(part in details for part in CUTS) else "refused"
