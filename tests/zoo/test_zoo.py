"""Folding public networks: all that can be folded is, the answers are those of float64, and a second fold does nothing.

The graphs are those that ``python -m benches.zoo.build FOLDER`` writes, in $ZOO; ``make test-zoo`` builds and tests.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from benches.folding.count import Count, count
from benches.folding.measure import relative_error, session
from benches.zoo.networks import NETWORKS

from normfold.export.fold import FoldReport, fold

from .kept import GAPS, KEPT

ZOO = Path(os.environ.get("ZOO", "build/zoo"))
FILES = ("unfolded", "unfolded_legacy")
#: Two orders of the same sum can differ by this much: a few units in the last place of float32.
FLOOR = 4 * float(np.finfo(np.float32).eps)
#: With a larger error the file is no export of the network for this input, such as an adaptive pool at another length.
EXPORTED_RIGHT = 1e-3

pytestmark = pytest.mark.zoo
if not (ZOO / "INDEX.json").is_file():
    pytest.skip(f"no networks in {ZOO}: `make test-zoo` builds them", allow_module_level=True)


@dataclass(frozen=True)
class Tried:
    """A file of a network, folded."""

    before: Count
    after: Count
    report: FoldReport
    folded: onnx.ModelProto
    #: The error of the unfolded file on each input; None if the file takes no input of this size.
    errors: tuple[float | None, ...]
    #: The largest error of torch's default export, which rounds the same function in another way; 0 if it is missing.
    default_error: float


@functools.lru_cache(maxsize=1)
def tried(name: str, file: str) -> Tried:
    """Return the folded file of a network; skip the test if the exporter could not write the file."""
    files: dict[str, Any] = json.loads((ZOO / name / "facts.json").read_text())["files"]
    facts = files[file]
    if "failed" in facts:
        pytest.skip(f"not exported: {facts['failed'].splitlines()[0]}")
    proto = onnx.load(ZOO / name / f"{file}.onnx")
    model = ir.from_proto(proto)
    report = fold(model)
    folded = ir.to_proto(model)
    default = [error for error in files["torch_default"].get("errors", []) if error and error < EXPORTED_RIGHT]
    return Tried(count(proto), count(folded), report, folded, tuple(facts["errors"]), max(default, default=0.0))


def expect_gap(request: pytest.FixtureRequest, claim: str, name: str, file: str) -> None:
    """Mark the test as expected to fail if the claim is known not to hold yet; pytest reports it if it holds."""
    if reason := GAPS.get((claim, name, file)):
        request.node.add_marker(pytest.mark.xfail(reason=reason))


def built() -> list[str]:
    return [network.name for network in NETWORKS if (ZOO / network.name / "facts.json").is_file()]


each_file = pytest.mark.parametrize(("name", "file"), [(name, file) for name in built() for file in FILES])


@each_file
def test_every_batchnorm_that_can_go_is_gone(request: pytest.FixtureRequest, name: str, file: str) -> None:
    expect_gap(request, "gone", name, file)
    result = tried(name, file)
    kept, why = KEPT.get(name, (0, "every one can go"))
    reasons = [f"{entry.name}: {entry.reason}" for entry in result.report.folds if not entry.folded]
    assert result.after.left(result.before) <= kept, f"expected {kept} ({why}); {result.after}\n" + "\n".join(reasons)


@each_file
def test_the_error_is_at_most_twice_the_unfolded_one(name: str, file: str) -> None:
    result = tried(name, file)
    reference = np.load(ZOO / name / "reference.npz")
    run = session(result.folded.SerializeToString())
    (x,) = run.get_inputs()
    by_size: dict[tuple[int, ...], list[tuple[float, float]]] = {}
    for index, before in enumerate(result.errors):
        given = reference[f"x{index}"]
        if before is not None and before < EXPORTED_RIGHT:
            error = relative_error(run.run(None, {x.name: given})[0], reference[f"y{index}"])
            by_size.setdefault(given.shape, []).append((error, before))
    for shape, pairs in by_size.items():
        after, before = (max(column) for column in zip(*pairs, strict=True))
        before = max(before, result.default_error)
        assert after <= 2 * before + FLOOR, f"input {shape}: {after:.1e} folded, {before:.1e} unfolded"


@each_file
def test_the_folded_file_is_valid_and_no_larger_in_nodes(request: pytest.FixtureRequest, name: str, file: str) -> None:
    expect_gap(request, "nodes", name, file)
    result = tried(name, file)
    onnx.checker.check_model(result.folded)
    assert result.after.nodes <= result.before.nodes


@each_file
def test_folding_twice_changes_nothing(request: pytest.FixtureRequest, name: str, file: str) -> None:
    expect_gap(request, "twice", name, file)
    result = tried(name, file)
    model = ir.from_proto(result.folded)
    fold(model)
    assert count(ir.to_proto(model)) == result.after
