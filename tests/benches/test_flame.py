"""The flame graph: its table and its drawing from invented stacks; and that a program writes its own stacks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from benches.serving.flame import COLOURS, PARTS, drawing, part_of, table

ROOT = Path(__file__).resolve().parents[2]
STACKS = Counter(
    {
        "http2/socket_side:data_received;http2/unary_call:_ask;capi/session:run": 6,
        "http2/socket_side:data_received;http2/unary_call:_ask": 3,
        "http2/socket_side:data_received;http2/sending:answer": 1,
    }
)
SVG = "{http://www.w3.org/2000/svg}"


def test_a_sample_counts_for_its_innermost_frame():
    assert table(STACKS).splitlines()[2:] == [
        "| the run of the model by onnxruntime | 60 |",
        "| a call's beginning and end | 30 |",
        "| the answer's frames | 10 |",
    ]


def test_each_frame_is_as_wide_as_its_share():
    boxes = {}
    for group in ElementTree.fromstring(drawing(STACKS)).iter(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        assert title is not None
        assert rect is not None
        boxes[title.text] = (float(rect.get("x", 0)), float(rect.get("width", 0)), rect.get("fill"))
    left = 12.0
    assert boxes["http2/socket_side:data_received: 100.0 %"][:2] == (left, 1100.0)
    assert boxes["http2/sending:answer: 10.0 %"][:2] == (left, 110.0)
    assert boxes["http2/unary_call:_ask: 90.0 %"][:2] == (left + 110.0, 990.0)
    assert boxes["capi/session:run: 60.0 %"] == (left + 110.0, 660.0, COLOURS[0])


def test_every_module_belongs_to_a_part():
    assert len(COLOURS) == len(PARTS)
    assert list(PARTS)[part_of("selectors/whatever:select")].startswith("sockets")


def test_a_program_writes_the_stacks_of_its_main_thread(tmp_path):
    program = (
        "import sys; from pathlib import Path; from benches.serving.sampled import sample\n"
        "def busy():\n    while True: sum(range(1000))\n"
        "sample(Path(sys.argv[1])); print('ready', flush=True); busy()"
    )
    found = tmp_path / "stacks"
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    with subprocess.Popen([sys.executable, "-c", program, str(found)], stdout=subprocess.PIPE, env=settings) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
            process.send_signal(signal.SIGUSR2)
            until = time.monotonic() + 60
            while not (found.is_file() and found.read_text()) and time.monotonic() < until:
                time.sleep(0.05)
        finally:
            process.kill()
    stacks = {
        stack: int(count) for stack, _, count in (line.rpartition(" ") for line in found.read_text().splitlines())
    }
    busy = sum(count for stack, count in stacks.items() if ":busy" in stack)
    assert busy > sum(stacks.values()) / 2  # one may fall into the handlers of the signals
