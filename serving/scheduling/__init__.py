"""The queue of a model: batches, priorities, timeouts, the choice of the thread for a run, counters, cached responses.

No onnxruntime and no request message comes in: the scheduler is given a function that runs arrays.
"""
