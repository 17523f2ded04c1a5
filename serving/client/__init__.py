"""The two clients, which ask any server of the Open Inference Protocol with NumPy arrays.

Nothing of the server comes in but the room ``wire``, and no onnxruntime: a client is imported in programs without it.
"""
