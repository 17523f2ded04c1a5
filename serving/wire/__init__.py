"""Bytes and messages to values and back: tensors, strings, classes, and the frames of HTTP/2.

Nothing about models, queues or connections comes in: each function here takes values and returns values.
"""
