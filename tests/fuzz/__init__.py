"""Drawn bytes for everything that reads bytes of others. ``python -m tests.fuzz`` is the long form."""
