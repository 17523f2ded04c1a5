"""Networks of mixed operators through the whole export: no crash, no file that does not load, no wrong answer.

The long form is ``make fuzz-export``. Here are a few networks of fixed seeds, and those that once showed a fault.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from .mixed import OTHERS_AND_LINEAR, Drawn, Step, draw, tried, untimed

#: What an export may say of a drawn network in place of publishing it; all of these are true.
TRUE_REASONS = (
    "torch does not write this file",
    "where the network does. It takes another path there",
    "torch.fx cannot trace",
)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("NORMFOLD_CACHE_DIR", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with untimed():
        yield
    torch.set_num_threads(threads)


def require(drawn: Drawn, folder: Path) -> None:
    outcome = tried(drawn, folder)
    assert not outcome.fault, outcome
    assert outcome.kind == "exported" or any(reason in outcome.text for reason in TRUE_REASONS), outcome


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_file_of_mixed_operators_is_exported(seed: int, tmp_path: Path) -> None:
    require(draw(seed, "file"), tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_a_network_of_mixed_operators_is_folded(seed: int, tmp_path: Path) -> None:
    require(draw(seed, "fold"), tmp_path)


@pytest.mark.parametrize("seed", [1])
def test_a_module_of_mixed_operators_is_exported(seed: int, tmp_path: Path) -> None:
    require(draw(seed, "module"), tmp_path)


#: What once failed -> the steps, the opset, and the variant.
ONCE = {
    "a float64 Erf that was rounded to float32": (("transposed conv", "erf", "batch norm"), 19, "auto"),
    "a declared output shape with a batch of 2": (("linear over all",), 13, "lifted"),
    "a number of channels that the graph computes": (
        ("lazy slice of weights", "batch norm", "neg", "mean over time"), 16, "blocked",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ONCE)
def test_what_once_failed_does_not_come_back(what: str, tmp_path: Path) -> None:
    names, opset, variant = ONCE[what]
    steps = tuple(Step(name, seed) for seed, name in enumerate(names))
    plain = replace(draw(0, "file"), tokens=False, more_outputs=False, dynamic=False, channels=4, length=16)
    require(replace(plain, steps=steps, opset=opset, variant=variant), tmp_path)


def test_about_a_hundred_operators_can_be_drawn() -> None:
    assert len(OTHERS_AND_LINEAR) > 120
