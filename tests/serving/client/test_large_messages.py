"""Messages above the limits that gRPC has unless a client says otherwise: 4 MiB of an answer, 256 KiB to send again."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from normfold.protos import grpc_service as pb
from normfold.serving.client.async_client import AsyncClient
from normfold.serving.client.client import Client

X = np.arange(5 << 18, dtype=np.float32)[None]  # 5 MiB


class BusyAtFirst(grpc.GenericRpcHandler):
    """Refuses the first inference, and answers the next with its input."""

    def __init__(self) -> None:
        self.inferences = 0

    def service(self, details):
        infer = details.method.endswith("/ModelInfer")
        return grpc.unary_unary_rpc_method_handler(self.infer if infer else lambda data, context: b"")

    def infer(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        self.inferences += 1
        if self.inferences == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        request = pb.ModelInferRequest.FromString(data)
        response = pb.ModelInferResponse(model_name="m", raw_output_contents=request.raw_input_contents)
        response.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
        return response.SerializeToString()


@pytest.mark.usefixtures("each_transport")
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_large_request_is_sent_again_and_its_large_answer_read(kind):
    handler = BusyAtFirst()
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((handler,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    async def ask():
        async with AsyncClient(address) as client:
            return await client.infer("m", {"x": X})

    try:
        if kind is Client:
            with Client(address) as client:
                answer = client.infer("m", {"x": X})
        else:
            answer = asyncio.run(asyncio.wait_for(ask(), 60))
    finally:
        server.stop(0)
    np.testing.assert_array_equal(answer["y"], X)
    assert handler.inferences == 2
