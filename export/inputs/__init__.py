"""The inputs of a network: names, datatypes, dimensions, sizes that it takes, and the user's samples.

A network comes in only as a function that is called with sizes; graphs, PyTorch and ONNX may not come in.
"""
