"""The queue of a model: batches, priorities, timeouts, the choice of the thread of a run, counters, cached responses.

No onnxruntime and no request message comes in: the scheduler calls a function from arrays to arrays.
"""
