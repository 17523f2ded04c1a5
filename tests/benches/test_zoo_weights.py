"""A network of the zoo is measured with the weights that its files were made from, whatever was drawn meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from benches.zoo.build import WEIGHTS, is_built, kept, write
from benches.zoo.network import Network


def small() -> torch.nn.Module:
    torch.rand(Imports.count)  # a package that draws numbers while it is imported
    Imports.count += 1
    return torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3), torch.nn.BatchNorm1d(4), torch.nn.ReLU())


class Imports:
    count = 0


NETWORK = Network("small", "torch", small, ("N", 2, 9), ({"N": 2},))


def test_the_weights_are_those_of_the_files(tmp_path):
    folder = tmp_path / "small"
    write(NETWORK, folder)
    assert is_built(folder)
    saved = torch.load(folder / WEIGHTS, weights_only=True)
    found = kept(NETWORK, folder).state_dict()
    assert all(torch.equal(found[name], value) for name, value in saved.items())
    moved = {name: value + 1e-4 if value.is_floating_point() else value for name, value in saved.items()}
    torch.save(moved, folder / WEIGHTS)
    with pytest.raises(ValueError, match="build it again"):
        kept(NETWORK, folder)
    (folder / WEIGHTS).unlink()
    assert not is_built(folder)


def test_a_network_that_ends_its_process_does_not_end_the_others(tmp_path):
    """As torch's exporters do; in a new process, because torch's threads do not survive a fork."""
    script = (
        "import os, sys, torch; from pathlib import Path; from benches.zoo.build import build; "
        "from benches.zoo.network import Network; "
        "small = lambda: torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3), torch.nn.ReLU()); "
        "made = lambda name, make: Network(name, 'torch', make, ('N', 2, 9), ({'N': 2},)); "
        "build([made('ends', os.abort), made('next', small)], Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "ends: not built: the process ended with -6" in done.stdout
    assert list(json.loads((tmp_path / "INDEX.json").read_text())) == ["next"]
