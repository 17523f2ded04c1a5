"""A class name means one thing, and a module is short enough to be read at once."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from .test_layout import PACKAGES

LONGEST = 300

#: Names that two public classes still have, and what the two are. This list may only become shorter.
SAME_NAME: dict[str, str] = {
    "Call": "a call in a traced network, and a remote procedure call",
    "Connection": "the server's end of an HTTP/2 connection, and the load generator's",
    "Form": "an order of axes, and a column of the report",
    "Node": "a node of cpu_layout, and one of fold/reading",
    "Plan": "how an affine is carried out, and how a request is read",
    "Sample": "a file of inputs to prove with, and one to warm up with",
    "Sizes": "magnitudes of numbers, and sizes of dimensions",
    "Stream": "tensors that are scaled together, and an HTTP/2 stream",
    "Tensor": "a tensor of a network, and the description of a model's input or output",
    "Timing": "run times of graphs, and counted times of requests",
    "Writing": "how a region is written, and how a net is",
}

#: Modules with more than LONGEST lines, and the reason why they are not divided.
LONG: dict[str, str] = {
    "export/fold/ops/activations.py": "not divided yet",
    "export/fold/ops/linear.py": "not divided yet",
    "export/fold/ops/moving.py": "not divided yet",
    "serving/frontends/http2/connection.py": "not divided yet",
    "serving/load/http2.py": "not divided yet",
}


def modules(root: Path) -> list[Path]:
    folders = [*(root / name for name in (*PACKAGES, "benches", "examples", "docs")), root / "src" / "normfold"]
    return sorted(path for folder in folders for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def test_no_two_modules_define_a_public_class_of_the_same_name(root: Path) -> None:
    homes = defaultdict(list)
    for path in modules(root):
        if path.relative_to(root).parts[0] in (*PACKAGES, "src"):
            for statement in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_"):
                    homes[statement.name].append(str(path.relative_to(root)))
    assert len(homes) > 100
    same = {name: paths for name, paths in homes.items() if len(paths) > 1}
    new = "\n".join(f"{name}: {', '.join(paths)}" for name, paths in sorted(same.items()) if name not in SAME_NAME)
    assert not new, f"rename all but one of each:\n{new}"
    assert SAME_NAME.keys() - same.keys() == set(), "these are no longer defined twice: take them off SAME_NAME"


def test_a_long_module_is_on_the_list_with_its_reason(root: Path) -> None:
    lengths = {str(p.relative_to(root)): len(p.read_text(encoding="utf-8").splitlines()) for p in modules(root)}
    assert len(lengths) > 200
    long = {path for path, lines in lengths.items() if lines > LONGEST}
    assert long - LONG.keys() == set(), f"these have more than {LONGEST} lines: divide them, or give the reason in LONG"
    assert LONG.keys() - long == set(), f"these have at most {LONGEST} lines now: take them off LONG"
