"""The load generator: many calls of prepared requests, their latencies, and the CPU time that they cost the server.

Nothing of the server comes in but the rooms ``client`` and ``wire``: the same generator loads other servers, too.
"""
