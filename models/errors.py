"""The error of the training recipes."""

from __future__ import annotations


class DataError(ValueError):
    """The user's data file cannot be used; the message says where, what is there and what is expected."""
