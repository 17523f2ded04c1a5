"""How much of a graph's run time each type of operator takes, by the profile of onnxruntime."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from benches.folding.measure import session
from numpy.typing import NDArray

#: The first runs allocate memory, so they are not counted.
SKIPPED, RUNS = 5, 20


def where(content: bytes, x: NDArray[np.float32]) -> dict[str, float]:
    """Return the part of the time in kernels for each type of operator, the largest first; on one thread."""
    with tempfile.TemporaryDirectory() as scratch:
        run = session(content, optimise=True, profile=Path(scratch) / "profile")
        name = run.get_inputs()[0].name
        for _ in range(SKIPPED + RUNS):
            run.run(None, {name: x})
        events = json.loads(Path(run.end_profiling()).read_text(encoding="utf-8"))
    return parts(events)


def parts(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the part of the time in kernels for each type of operator, without the first runs of each node."""
    seen: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        seen[event["name"]] += 1
        if seen[event["name"]] > SKIPPED:
            spent[event["args"]["op_name"]] += event["dur"]
    total = sum(spent.values())
    return {kind: round(time / total, 3) for kind, time in spent.most_common()} if total else {}
