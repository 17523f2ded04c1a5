"""Where the time of a request goes: the event loop of a server under load, sampled, as a flame graph and a table.

    python -m benches.serving.flame [--seconds 6] [--in-flight 16] [--out docs/flame.svg]

The model is `tiny`, the frontend http2, h2load the client. Nothing else should run meanwhile: the samples are of this
process's CPU time, but a cold cache makes Python slower than it is.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from benches.machine import machine
from benches.ports import free_ports
from benches.serving import h2load
from benches.serving.networks import publish, tiny
from benches.serving.roster import CONFIG, Command, serve
from benches.serving.running import running

from normfold.serving.client.calls import infer_request
from normfold.serving.load.calls import UnaryCalls

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: The parts of a request, and the modules of the innermost frame that belong to each; the first that matches counts.
PARTS = {
    "the run of the model by onnxruntime": r"capi/|runtime/",
    "the request's bytes: finding its plan, copying its numbers, joining the answer": r"infer/|wire/(request|varint)",
    "frames and header blocks (HPACK)": r"wire/|http2/(frame_reader|requests|connection|control|messages)",
    "a call's beginning and end": r"http2/\w*call|rpc/|scheduling/(scheduler|admission|inline)|http2/(lifetime|turns)",
    "counting": r"scheduling/statistics|metrics/|http2/(patience|progress|holding)",
    "the answer's frames": r"http2/sending",
    "sockets: reading, writing, the loop": r"",
}
COLOURS = ("#8fb8de", "#dff0d3", "#f9cfb0", "#f3e3a1", "#d9c2e9", "#f4b6c2", "#d0d7de")
WIDTH, ROW, LETTER, MARGIN = 1100, 18, 6.6, 12
#: Frames above the event loop are the same in every stack, and say nothing.
OUTER = re.compile(r"(?:[^;]*;)*?(?=http2/socket_side|[^;]*$)")


def main() -> None:
    """Sample, print the table and write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--out", type=Path, default=DOCS / "flame.svg")
    given = parser.parse_args()
    h2load.check_present("h2load")
    with tempfile.TemporaryDirectory() as folder:
        stacks, per_second = sampled(Path(folder), given.seconds, given.in_flight)
    print(f"{machine()} {per_second:,.0f} requests a second, {sum(stacks.values()):,} samples.\n")
    print(table(stacks))
    given.out.write_text(drawing(stacks), encoding="utf-8")
    print(f"\nwrote {given.out}")


def sampled(folder: Path, seconds: float, in_flight: int) -> tuple[Counter[str], float]:
    """Return how often each stack was seen, outermost frame first, and the requests a second."""
    publish(tiny(), folder / "repository" / "tiny", CONFIG)
    message = infer_request("tiny", {"x": np.zeros((1, 1, 32), np.float32)}, None, "", "").SerializeToString()
    body = h2load.write_body(message, folder / "body")
    (port,) = free_ports(1)
    found = folder / "stacks"
    command = serve(folder / "repository", port, "--metrics-listen", "off")
    at = command.arguments.index("normfold")
    program = [*command.arguments[:at], "benches.serving.sampled", str(found), *command.arguments[at + 1 :]]
    paths = os.pathsep.join((str(DOCS.parent), os.environ.get("PYTHONPATH", "")))
    asked = Command(program, {"PYTHONPATH": paths})
    with running("sampled", asked, port, lambda a: UnaryCalls(a, [message]), folder) as server:
        load = h2load.start(h2load.infer(server.address, body), seconds + 2, 1, in_flight)
        time.sleep(1)
        os.kill(server.pid, signal.SIGUSR1)
        time.sleep(seconds)
        os.kill(server.pid, signal.SIGUSR2)
        answered = h2load.succeeded(load)
        until = time.monotonic() + 10
        while not found.is_file() and time.monotonic() < until:
            time.sleep(0.05)
    stacks = Counter[str]()
    for line in found.read_text(encoding="utf-8").splitlines():
        stack, _, count = line.rpartition(" ")
        stacks[OUTER.sub("", stack, count=1)] += int(count)
    return stacks, answered / round(seconds + 2)


def part_of(frame: str) -> int:
    """Return the number of the part that a frame belongs to."""
    return next(number for number, places in enumerate(PARTS.values()) if re.match(places, frame))


def table(stacks: Counter[str]) -> str:
    """Return the share of each part as a table, by the innermost frame of each stack, the largest first."""
    shares = Counter[int]()
    for stack, count in stacks.items():
        shares[part_of(stack.rpartition(";")[2])] += count
    total = max(1, sum(shares.values()))
    names = list(PARTS)
    rows = [f"| {names[number]} | {100 * count / total:.0f} |" for number, count in shares.most_common()]
    return "\n".join(("| part | % |", "|---|---|", *rows))


@dataclass
class Frame:
    """A frame with all that it called: how often it was seen, and its callees by name."""

    count: int = 0
    called: dict[str, Frame] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """The rows below it, itself included."""
        return 1 + max((frame.depth for frame in self.called.values()), default=0)


def drawing(stacks: Counter[str]) -> str:
    """Return the flame graph as SVG: outermost frames above, each as wide as its share of the samples."""
    root = Frame()
    for stack, count in stacks.items():
        at = root
        at.count += count
        for name in stack.split(";"):
            at = at.called.setdefault(name, Frame())
            at.count += count
    boxes: list[str] = []
    _draw(root, root.count, 0, MARGIN, boxes)
    height = (root.depth - 1) * ROW + 2 * MARGIN + ROW * ((len(PARTS) + 1) // 2 + 1)
    legend = [
        f'<rect x="{MARGIN + 540 * (n % 2)}" y="{height - MARGIN - ROW * ((len(PARTS) + 1) // 2 - n // 2)}" width="14" '
        f'height="14" fill="{COLOURS[n]}"/><text x="{MARGIN + 20 + 540 * (n % 2)}" '
        f'y="{height - MARGIN - ROW * ((len(PARTS) + 1) // 2 - n // 2) + 12}">{escape(name)}</text>'
        for n, name in enumerate(PARTS)
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 2 * MARGIN} {height}" '
        'font-family="system-ui, sans-serif" font-size="11"><rect width="100%" height="100%" fill="#ffffff"/>'
    )
    return "\n".join((head, *boxes, *legend, "</svg>")) + "\n"


def _draw(frame: Frame, total: int, depth: int, left: float, boxes: list[str]) -> None:
    for name, called in sorted(frame.called.items()):
        width = WIDTH * called.count / max(1, total)
        if width >= 1:
            top = MARGIN + depth * ROW
            share = f"{100 * called.count / total:.1f} %"
            boxes.append(
                f'<g><title>{escape(name)}: {share}</title><rect x="{left:.1f}" y="{top}" width="{width:.1f}" '
                f'height="{ROW - 1}" fill="{COLOURS[part_of(name)]}" stroke="#ffffff" stroke-width="0.5"/>'
                + _label(name, share, left, top, width)
                + "</g>"
            )
            _draw(called, total, depth + 1, left, boxes)
        left += width


def _label(name: str, share: str, left: float, top: int, width: float) -> str:
    letters = int((width - 6) / LETTER)
    text = next((each for each in (f"{name} {share}", name, name.rpartition(":")[2]) if len(each) <= letters), "")
    return f'<text x="{left + 3:.1f}" y="{top + 12}" fill="#1f2328">{escape(text)}</text>' if text else ""


if __name__ == "__main__":
    sys.exit(main())
