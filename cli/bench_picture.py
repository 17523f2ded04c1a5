"""Latency against throughput as an SVG drawing with a line for each server, and as a page with drawing and table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from normfold.serving.load.generator import Load
from normfold.serving.load.rounds import Target

WIDTH = 760
#: Height of the lines' part, and the free space around it; the names of the servers come above it.
PLOT, LEFT, RIGHT, TOP, BOTTOM = 292, 70, 30, 74, 74
#: Height of a row of names, and how many stand in one.
ROW, IN_A_ROW = 20, 3
#: Free space above and below the lines, as a part of a factor of ten.
MARGIN_DECADES = 0.08
#: Colours that people with colour blindness can distinguish, too (by Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
STYLE = (
    "<style>.bench text{fill:#222222}.bench .paper{fill:#ffffff}.bench .grid{stroke:#e4e4e4}"
    "@media (prefers-color-scheme:dark){"
    ".bench text{fill:#e6edf3}.bench .paper{fill:#0d1117}.bench .grid{stroke:#30363d}}"
    "</style>"
)
COLUMNS = ("p50", "p90", "p99", "p99.9", "requests/s", "server CPU, us/request", "failed")

#: A point of a line: throughput, p50 and p99 in ms, and the load as text.
Point = tuple[float, float, float, str]


def drawing(targets: Sequence[Target], loads: Sequence[Load], title: str, about: str = "") -> str:
    """The drawing: p50 as solid and p99 as dashed lines on a logarithmic axis; each point is named by its load.

    The axes end where the data ends. ``about`` stands at the foot: the machine and the date.
    """
    lines = {one.name: _points(one, loads) for one in targets}
    points = [point for line in lines.values() for point in line]
    most = max((point[0] for point in points), default=1.0)
    low = math.log10(min((point[1] for point in points), default=1.0)) - MARGIN_DECADES
    high = math.log10(max((point[2] for point in points), default=1.0)) + MARGIN_DECADES

    top = TOP + ROW * math.ceil(len(lines) / IN_A_ROW)
    foot = top + PLOT
    height = foot + BOTTOM

    def x(throughput: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * throughput / most

    def y(milliseconds: float) -> float:
        share = (math.log10(milliseconds) - low) / (high - low)
        return foot - PLOT * share

    heading = "Latency against throughput" + (f": {targets[0].name}" if len(targets) == 1 else "")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="bench" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="sans-serif" font-size="13" role="img">',
        f"<title>{escape(heading)}: {escape(title)}</title>",
        STYLE,
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
        _label(LEFT, 26, heading, bold=True),
        _label(LEFT, 46, title),
        _label(WIDTH / 2, height - 32, "answered requests a second", anchor="middle"),
        _label(LEFT, height - 10, about, size=11),
        _label(14, top - 10, "latency, ms"),
    ]
    step = _step(most)
    for number in range(int(most / step) + 1):
        at = x(step * number)
        parts.append(_line(at, top, at, foot))
        parts.append(_label(at, foot + 18, f"{step * number:,.6g}", anchor="middle"))
    for power in range(math.floor(low), math.ceil(high)):
        for digit in (1, 2, 5):
            value = digit * 10.0**power
            if low <= math.log10(value) <= high:
                parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value)))
                parts.append(_label(LEFT - 8, y(value) + 4, f"{value:g}", anchor="end"))
    for index, (name, line) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        for which, dash in ((1, ""), (2, ' stroke-dasharray="5 4"')):
            path = " ".join(f"{x(point[0]):.1f},{y(float(point[which])):.1f}" for point in line)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for point in line:
            near = x(point[0]) > WIDTH - RIGHT - 90
            parts.append(f'<circle cx="{x(point[0]):.1f}" cy="{y(point[1]):.1f}" r="3.5" fill="{colour}"/>')
            beside = x(point[0]) + (-6 if near else 6)
            below = y(point[1]) + (15 if y(point[1]) + 15 < foot else -8)
            parts.append(_label(beside, below, point[3], "end" if near else "start", size=11))
        parts.append(_key(index, name, colour))
    parts.append(_label(WIDTH - RIGHT, 46, "solid p50, dashed p99", "end", size=11))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def page(targets: Sequence[Target], loads: Sequence[Load], title: str, about: str = "") -> str:
    """The drawing and the table, as one HTML file that needs no other file."""
    head = "".join(f"<th>{escape(column)}</th>" for column in ("load", "server", *COLUMNS))
    rows = []
    for load in loads:
        for one in targets:
            if load not in one.slices:
                continue
            total = one.total(load)
            cells = [f"{total.milliseconds(p):.2f} ms" for p in (50, 90, 99, 99.9)]
            cells += [f"{total.per_second:,.0f}", "" if total.cpu_us is None else f"{total.cpu_us:.0f}"]
            cells += [", ".join(f"{count} {status}" for status, count in total.errors.items()) or "0"]
            texts = (str(load), one.name, *cells)
            rows.append("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in texts) + "</tr>")
    style = (
        ":root{color-scheme:light dark}body{font-family:sans-serif;max-width:900px;margin:2em auto;padding:0 1em}"
        "svg{max-width:100%;height:auto}td,th{padding:.2em .8em;text-align:right}th{border-bottom:1px solid #777}"
        "td:nth-child(2),th:nth-child(2){text-align:left}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>\n'
        f"{drawing(targets, loads, title, about)}<table><tr>{head}</tr>\n" + "\n".join(rows) + "\n</table></html>\n"
    )


def _points(one: Target, loads: Sequence[Load]) -> list[Point]:
    found = []
    for load in loads:
        total = one.total(load)
        if total.latencies.count:
            found.append((total.per_second, total.milliseconds(50), total.milliseconds(99), _point(load)))
    return found


def _point(load: Load) -> str:
    return str(load) if load.rate else f"{load} in flight"


def _step(most: float) -> float:
    """The distance of the marks of an axis from 0 to ``most``: a round number, at most six of which fit.

    >>> _step(18_000.0), _step(0.9)
    (5000.0, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(max(most, 1e-9) / 6))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit * 6 >= most)


def _key(index: int, name: str, colour: str) -> str:
    row, column = divmod(index, IN_A_ROW)
    left, at = LEFT + column * (WIDTH - LEFT - RIGHT) / IN_A_ROW, TOP - 8 + ROW * row
    line = f'<path d="M{left:.1f} {at - 4} l26 0" stroke="{colour}" stroke-width="3"/>'
    return line + _label(left + 32, at, name)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="grid" d="M{x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f}"/>'


def _label(x: float, y: float, text: str, anchor: str = "start", *, bold: bool = False, size: int = 13) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight}>{escape(text)}</text>'
