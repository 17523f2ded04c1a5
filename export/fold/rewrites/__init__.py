"""This room rewrites ONNX graphs before and after the fold, so that channels can be followed and nodes are fewer.

Each rewrite is exact and needs no gauges; nothing may come in that knows the folding network or an affine.
"""
