"""Remote procedures without a transport: their paths, functions and statuses, and the calls under way.

Neither a transport may come in here (only ``grpc_status`` knows grpcio) nor anything that knows models.
"""
