"""Several processes that are one server: workers, each a whole server on the same port, under a supervisor.

The supervisor starts workers, replaces those that end, and passes on between them what must hold for all; it answers no
request, and neither onnxruntime nor grpc may come into its modules. A worker that gets a request that concerns the
others, such as to load a model, passes it to the supervisor; the supervisor has every worker carry it out, one request
after the other, and the worker that got it answers for all.

supervisor, port, process, exchange, journal    the supervisor's side
worker, worker_link, shared_methods             a worker's side
messages, frames                                what they send each other
"""
