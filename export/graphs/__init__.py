"""ONNX graphs as such: read, check, look at, write, run, and compute in float64.

A module here knows ONNX and onnxruntime; rules of folding or layout, and networks of PyTorch, may not come in.
"""
