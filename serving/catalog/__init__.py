"""The models of a repository: found, read, configured, loaded and kept by name, as what clients may ask.

Nothing about requests or their order comes in: a request is read in ``infer``, and a frontend never imports this room.
"""
