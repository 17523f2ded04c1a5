"""The ``normfold`` command: one thin module a subcommand, and the only place that prints."""

from __future__ import annotations

from normfold.cli.main import main

__all__ = ["main"]
