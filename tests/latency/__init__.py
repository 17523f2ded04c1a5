"""Latency and throughput of served networks; ``python -m tests.latency`` prints them."""
