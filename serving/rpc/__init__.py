"""What a remote procedure is, whatever carries it: its path, its functions, its status, and the calls under way.

No transport comes in here (only ``grpc_status`` knows grpcio), and nothing that knows models.
"""
