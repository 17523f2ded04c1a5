"""The server and the client: a model repository, asked over the Open Inference Protocol.

``server.serve`` runs a server; ``client.Client`` and ``client.AsyncClient`` ask one. Nothing here imports torch.
"""
