"""The transports: each carries bytes between a client and the methods of ``rpc``, and knows nothing of models."""
