"""Conversions between bytes or messages and values: tensors, strings, classes, and the frames of HTTP/2.

Nothing about models, queues or connections comes in. Only the reader of header blocks keeps state.
"""
