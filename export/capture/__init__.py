"""From a PyTorch network to an ONNX graph that still holds every BatchNorm, with every named dimension still dynamic.

A module here may know torch and ONNX; what folds, rewrites or judges a graph may not come in.
"""
