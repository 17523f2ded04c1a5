"""The examples run, and print what they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from .latency import networks


@pytest.fixture(scope="module")
def address(trained):
    with networks.served(trained) as (address, _):
        yield address


def _run(root, script, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / script), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_every_example_but_the_demo_is_under_forty_lines(root):
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (root / "examples").iterdir()}
    assert set(lengths) == {"async_client.py", "client.py", "demo.py", "export_a_network.py", "fold_a_network.py"}
    assert [name for name, lines in lengths.items() if lines >= 40] == ["demo.py"]


def test_folding_a_network_leaves_no_batchnorm_and_the_same_answers(root):
    printed = _run(root, "examples/fold_a_network.py")
    assert "BatchNorms: 3 before, 0 after" in printed
    assert "forward into '3'; '3' reads the shift from a carrier channel" in printed
    error = re.search(r"largest error against PyTorch in float64: (\S+) of the scale", printed)
    assert error is not None
    # Four layers of sums of at most 231 terms: 4 * 231 * 2^-24 bounds the relative error where nothing cancels.
    assert float(error[1]) < 4 * 231 * 2.0**-24


def test_a_network_in_memory_is_exported_and_the_report_is_printed(root, tmp_path):
    printed = _run(root, "examples/export_a_network.py", "--repository", str(tmp_path / "repository"))
    assert re.search(r"^BatchNorms +3 +0", printed, re.MULTILINE)
    assert "'x' is standardised before the network" in printed
    assert printed.splitlines()[-1] == f"written to {tmp_path}/repository/noises/1"
    assert (tmp_path / "repository" / "noises" / "labels.txt").read_text() == "quiet\nloud\n"


def test_the_client_prints_nationalities(root, address):
    printed = _run(root, "examples/client.py", "--address", address, "Demakis", "Nakamura")
    assert "logits float32 (2, 18)" in printed
    assert re.search(r"^Demakis: Greek \S+, ", printed, re.MULTILINE)
    assert re.search(r"^Nakamura: Japanese \S+, ", printed, re.MULTILINE)


def test_the_async_client_counts_right_answers(root, address):
    printed = _run(root, "examples/async_client.py", "--address", address)
    assert re.match(r"240 answers, 240 of them right: ", printed)


@pytest.mark.parametrize("script", ["client.py", "async_client.py"])
def test_a_client_without_a_server_says_in_one_line_how_to_start_one(root, script):
    command = [sys.executable, str(root / "examples" / script), "--address", "unix:/nowhere/at/all"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert re.fullmatch("Error: .*; start one with: normfold serve --repository DIR\n", run.stderr)


def test_the_picture_is_drawn_from_the_folded_graph(root, tmp_path):
    _run(root, "docs/draw_folding.py", "--out", str(tmp_path / "folding.svg"))
    drawn = (tmp_path / "folding.svg").read_text(encoding="utf-8")
    committed = (root / "docs" / "folding.svg").read_text(encoding="utf-8")
    for picture in (drawn, committed):
        assert re.search(r"as trained: \d+ nodes, [1-9]\d* BatchNorms", picture)
        assert re.search(r"as served: \d+ nodes, 0 BatchNorms", picture)
    assert drawn.count("<path d=") >= 20  # from each node to those that read it
