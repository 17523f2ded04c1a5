"""The models of a repository: this room finds, reads, configures and loads them, and keeps them by name.

Nothing about requests comes in: a request is read in ``infer``, and no frontend imports this room.
"""
