"""A load generator: many requests of prepared bytes, their latencies, and what they cost the server."""
