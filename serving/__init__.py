"""The server and its clients: the models of a repository, served over the Open Inference Protocol.

``server.serve`` runs a server; ``client.client`` has ``Client``, ``client.async_client`` has ``AsyncClient``.
Neither torch nor onnx nor ``normfold.export`` may be imported here.
"""
