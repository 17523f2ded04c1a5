"""Metrics in Prometheus's text format, and the HTTP port that answers with them and with health.

No model, no frontend and no event loop comes in here: a snapshot of the counters is a message that it is given.
"""
