"""A server that gives every message back, to show the cost of grpcio itself. ``echo.py PORT``."""

import asyncio
import sys

import grpc
import grpc.aio


async def echo(data: bytes, context: object) -> bytes:
    return data


async def main() -> None:
    unlimited = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    server = grpc.aio.server(options=unlimited)
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(echo)}
    service = "inference.GRPCInferenceService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
