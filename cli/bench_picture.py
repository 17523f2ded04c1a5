"""Latency against throughput as an SVG drawing with a line for each server, and as a page with drawing and table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from normfold.serving.load.generator import Load
from normfold.serving.load.rounds import Target

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 74, 56
#: Colours that people with colour blindness can distinguish, too (by Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
COLUMNS = ("p50", "p90", "p99", "p99.9", "requests/s", "server CPU, us/request", "failed")

#: A point of a line: throughput, p50 and p99 in ms, and the load as text.
Point = tuple[float, float, float, str]


def drawing(targets: Sequence[Target], loads: Sequence[Load], title: str) -> str:
    """The drawing: p50 as solid and p99 as dashed lines on a logarithmic axis; each point is named by its load."""
    lines = {one.name: _points(one, loads) for one in targets}
    points = [point for line in lines.values() for point in line]
    right = _ceiling(max((point[0] for point in points), default=1.0) * 1.05)
    low = math.floor(math.log10(min((point[1] for point in points), default=1.0)))
    high = max(math.ceil(math.log10(max((point[2] for point in points), default=1.0))), low + 1)

    def x(throughput: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * throughput / right

    def y(milliseconds: float) -> float:
        share = (math.log10(milliseconds) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="13" role="img">',
        f"<title>Latency against throughput: {escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        _label(LEFT, 26, "Latency against throughput", bold=True),
        _label(LEFT, 46, title),
        _label(WIDTH / 2, HEIGHT - 14, "answered requests a second", anchor="middle"),
        _label(14, TOP - 10, "ms"),
    ]
    for step in range(6):
        at = x(right * step / 5)
        parts.append(_line(at, TOP, at, HEIGHT - BOTTOM, "#eeeeee"))
        parts.append(_label(at, HEIGHT - BOTTOM + 18, f"{right * step / 5:,.6g}", anchor="middle"))
    for power in range(low, high + 1):
        for digit in range(1, 10 if power < high else 2):
            at = y(digit * 10.0**power)
            parts.append(_line(LEFT, at, WIDTH - RIGHT, at, "#cccccc" if digit == 1 else "#f2f2f2"))
        parts.append(_label(LEFT - 8, y(10.0**power) + 4, f"{10.0**power:g}", anchor="end"))
    for index, (name, line) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        for which, dash in ((1, ""), (2, ' stroke-dasharray="5 4"')):
            path = " ".join(f"{x(point[0]):.1f},{y(float(point[which])):.1f}" for point in line)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for point in line:
            parts.append(f'<circle cx="{x(point[0]):.1f}" cy="{y(point[1]):.1f}" r="3.5" fill="{colour}"/>')
            parts.append(_label(x(point[0]) + 6, y(point[1]) + 15, point[3], colour=colour, size=11))
        parts.append(_key(TOP + 18 + 20 * index, name, colour))
    parts.append(
        _label(WIDTH - RIGHT, 46, "solid p50, dashed p99; points: requests in flight or a second", "end", size=11)
    )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def page(targets: Sequence[Target], loads: Sequence[Load], title: str) -> str:
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
            cells += [", ".join(f"{count} {status}" for status, count in total.errors.items())]
            texts = (str(load), one.name, *cells)
            rows.append("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in texts) + "</tr>")
    style = (
        "body{font-family:sans-serif;max-width:900px;margin:2em auto;color:#222}"
        "td,th{padding:.2em .8em;text-align:right}th{border-bottom:1px solid #777}"
        "td:nth-child(2),th:nth-child(2){text-align:left}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>\n'
        f"{drawing(targets, loads, title)}<table><tr>{head}</tr>\n" + "\n".join(rows) + "\n</table></html>\n"
    )


def _points(one: Target, loads: Sequence[Load]) -> list[Point]:
    found = []
    for load in loads:
        total = one.total(load)
        if total.latencies.count:
            found.append((total.per_second, total.milliseconds(50), total.milliseconds(99), str(load)))
    return found


def _ceiling(value: float) -> float:
    """The next round number from ``value`` up."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-9)))
    return next(power * digit for digit in (1, 2, 2.5, 5, 10) if power * digit >= value)


def _key(at: float, name: str, colour: str) -> str:
    right = WIDTH - RIGHT - 8
    return _line(right - 26, at - 4, right, at - 4, colour, 2) + _label(right - 32, at, name, "end", colour=colour)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _label(
    x: float, y: float, text: str, anchor: str = "start", *, bold: bool = False, colour: str = "#222222", size: int = 13
) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-size="{size}"{weight}>'
        f"{escape(text)}</text>"
    )
