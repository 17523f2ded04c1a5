"""The figures of one bench on each kind of processor: a file beside the page for the newest vector instructions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benches.machine import SETS, instruction_sets


def processor() -> str:
    """Return the newest vector instructions of this processor, as a table names them: "AVX-512 VNNI"."""
    return (instruction_sets() or ["other"])[-1]


def results_file(folder: Path, name: str | None = None) -> Path:
    """Return the file in ``folder`` for the figures of the processor ``name``; None: of this one."""
    return folder / f"results-{(name or processor()).lower().replace(' ', '-')}.json"


def on_others(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what was measured on processors of other kinds, by their names, from the oldest to the newest."""
    names = [name for name in SETS.values() if name != processor()]
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in names
        if (path := results_file(folder, name)).is_file()
    }
