"""The type of options that take a time."""

from __future__ import annotations

import math
from typing import Any

import click

from normfold.serving.client.arguments import LONGEST_SECONDS

__all__ = ["Seconds"]


class Seconds(click.FloatRange):
    """A number of seconds. A longer time than a client can wait, such as infinity, becomes the longest that it can."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """``value`` as a number. Raises BadParameter, also for NaN, which no comparison finds out of range."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds, such as 5.", param, ctx)
        return min(seconds, LONGEST_SECONDS)
