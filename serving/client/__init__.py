"""The two clients, which ask any server of the Open Inference Protocol with NumPy arrays.

Nothing of the server comes in but the room ``wire``, and no onnxruntime: programs without it use these clients.
"""
