"""Several processes that are one server: workers, each a whole server on the same port, under a supervisor.

The supervisor starts workers, starts what ends again, and passes on between them what has to hold for all; it answers
no request, and imports neither onnxruntime nor grpc. A worker that is asked for something that concerns the others, as
to load a model does, hands the request to the supervisor as it came; the supervisor has every worker do it, one request
after the other, and the worker that was asked answers for all.
"""
