"""The process that serves: its CPUs, memory, event loop, standard files, log, cache folder and listen address.

Nothing that knows models, requests or transports comes in here.
"""
