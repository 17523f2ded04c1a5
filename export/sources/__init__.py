"""The network that the user names: a PyTorch class or function, a ``.pt2`` program, an ``.onnx`` file, and its weights.

All become an :class:`~normfold.export.sources.origin.Origin`; what folds, proves or publishes may not come in.
"""
