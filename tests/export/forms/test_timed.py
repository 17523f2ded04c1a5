"""The size that variants are timed at: chosen, asked for, or refused with the sizes that there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torch import nn

from normfold import export_network
from normfold.cli.main import main
from normfold.export.errors import InputSpecError
from normfold.export.forms.timed import check_timed, free_lengths, timed_inputs
from normfold.export.inputs.sizes import Sizes
from normfold.export.inputs.specs import parse_inputs

SPECS = parse_inputs(["x=FP32[N:1..8,3,L:8..400:8]", "mask=FP32[N:1..8,L:8..400:8]"])
SIZES = Sizes({"N": 2, "L": 32}, ({"N": 2, "L": 32},), SPECS)


@pytest.mark.parametrize(
    ("asked", "shape", "free"),
    [({}, (1, 3, 32), ("L",)), ({"L": 80}, (1, 3, 80), ()), ({"N": 8}, (8, 3, 32), ("L",))],
)
def test_the_asked_sizes_are_timed_and_the_others_are_those_of_the_trace(
    asked: dict[str, int], shape: tuple[int, ...], free: tuple[str, ...]
) -> None:
    assert timed_inputs(SIZES, asked)["x"].shape == shape
    assert free_lengths(SIZES, asked) == free


def test_a_batch_that_begins_above_1_is_timed_where_it_begins() -> None:
    sizes = Sizes({"N": 4}, ({"N": 4},), parse_inputs(["x=FP32[N:3..8,3]"]))
    assert timed_inputs(sizes, {})["x"].shape == (3, 3)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"M": 80}, "--time-at M=80: there is no dimension 'M'; the named dimensions are N, L"),
        ({"L": 81}, r"--time-at L=81: the network takes L:8\.\.400:8"),
        ({"L": 400}, r"--time-at L=400: the network does not run there at test_timed.py:\d+ in run: .*: too long"),
    ],
)
def test_a_size_that_is_none_of_the_networks_is_refused(asked: dict[str, int], said: str) -> None:
    def run(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if inputs["x"].shape[2] > 200:
            raise RuntimeError("too long")
        return inputs

    check_timed(SIZES, {"L": 80}, run)
    with pytest.raises(InputSpecError, match=f"^{said}$"):
        check_timed(SIZES, asked, run)


def test_the_report_has_the_asked_size(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)).eval()
    sizes = "x=FP32[N,2,L]"
    report = export_network(network, inputs=sizes, repository=tmp_path, name="net", time_at={"L": 77}, form="folded")
    assert (report.timing.shapes, report.timing.free) == ("x[1,2,77]", ())
    assert "run times at x[1,2,77] measured now" in str(report)


def test_the_command_refuses_what_is_no_size(tmp_path: Path) -> None:
    for text in ("L", "L=", "L=0", "=5", "L=x", f"L={'9' * 5000}"):
        done = CliRunner().invoke(
            main, ["export", "n.py:N", "--repository", str(tmp_path), "--name", "n", "--time-at", text]
        )
        assert done.exit_code == 2
        assert f"--time-at {text}: expected a dimension and a size from 1 up, for example L=5000" in done.output
