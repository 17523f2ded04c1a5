"""This room holds a class for each kind of operator, whose docstring states its identity and its side conditions.

Methods are pure but for ``write`` and ``take``; nothing may come in that chooses between ways to fold or reads a graph.
"""
