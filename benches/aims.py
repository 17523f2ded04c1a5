"""What a page of results says of aims that were not reached."""

from __future__ import annotations

from collections.abc import Iterable


def unreached(heading: str, aims: Iterable[tuple[str, bool, str]]) -> list[str]:
    """Return ``heading`` and a line for each aim, given as name, whether it was reached, and what bounds it.

    Aims that were reached, and those of which nothing is said, have no line; without any line there is no heading.
    """
    lines = [f"- *{name}*: {why}" for name, reached, why in aims if not reached and why]
    return ["", heading, "", *lines] if lines else []
