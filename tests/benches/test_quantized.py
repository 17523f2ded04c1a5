"""The comparison of int8 with onnxruntime's own quantizer: what is counted as an error, and the page."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benches.bits.__main__ import Subject
from benches.quantized import measure
from benches.quantized.__main__ import lines
from benches.quantized.measure import Figures, Loss, loss, of_quantize_static
from torch import nn

STATIC, NNCF, PLAIN, OURS = Loss(0.3, 0.1, 0.05), Loss(0.1, 0.2, 0.0), Loss(0.2, 0.05, 0.01), Loss(0.03, 0.01, 0.0)
FIGURES = Figures(STATIC, 0.4, NNCF, PLAIN, OURS, 0.031, 9, 2, 3, True, 0.8, 1.5)


def test_a_loss_has_the_largest_error_its_mean_square_and_the_labels_that_change():
    exact, got = np.float32([[0, 4], [2, 0]]), np.float32([[0, 3], [0, 1]])
    assert loss(exact, got) == Loss(0.5, pytest.approx(np.sqrt(6 / 4) / exact.std()), 0.5)
    assert loss(exact[..., None], got[..., None]).changed is None


def test_figures_are_read_as_they_were_kept():
    assert Figures.of(asdict(FIGURES)) == FIGURES


def test_the_page_has_a_row_for_each_network_and_the_aims():
    page = "\n".join(lines({"surnames": FIGURES}, {"a new one": {"surnames": replace(FIGURES, speed=2.5)}}))
    losses = "0.300; 0.100; 5.00 | 0.400 | 0.100; 0.200; 0.00 | 0.200; 0.050; 1.00 | 0.030; 0.010; 0.00 | 0.031"
    assert f"| surnames | {losses} | 0.10, 0.30 | 2 of 9 | 3 | corrected | 0.80, 1.50 |" in page
    assert "| worst of the largest error | 0.300 | 0.100 | 0.200 | 0.030 | ≤ ⅓ | 0.10 | 0.30 |" in page
    assert "| labels that change, surnames | 5.00% | 0.00% | 1.00% | 0.00% | ≤ 0.2% | | |" in page
    assert "geometric mean: 0.80; slower in int8, so refused: 1 of 1." in page
    assert "smaller error on 1 of 1, and takes less time on 1 (geometric mean 1.50 × faster)" in page
    assert "| surnames | 0.80, 1.50 | 2.50, 1.50 |\n| geometric mean | 0.80, 1.50 | 2.50, 1.50 |" in page


def test_a_time_has_its_spread_where_that_was_kept():
    page = "\n".join(lines({"surnames": replace(FIGURES, spread=0.02, spread_over_nncf=0.1)}, {}))
    assert "| 0.80 ± 0.02, 1.50 ± 0.10 |" in page


def test_the_quantizers_get_the_file_of_torchs_exporter(monkeypatch: pytest.MonkeyPatch):
    written = []
    monkeypatch.setattr(torch.onnx, "export", lambda network, inputs, file, **options: written.append((file, options)))
    monkeypatch.setattr(measure.onnx, "load", lambda file: measure.onnx.ModelProto(producer_name=str(file)))
    rows = np.zeros((2, 3, 8), np.float32)
    subject = Subject("small", nn.Conv1d(3, 2, 1), "x=FP32[N,3,L]", {"N": 2, "L": 8}, rows, rows)
    content = measure.torch_default(subject)
    ((file, options),) = written
    assert measure.onnx.load_from_string(content).producer_name == file
    assert list(options["dynamic_shapes"][0]) == [0, 2]


def test_quantize_static_gets_the_file_and_the_rows(monkeypatch: pytest.MonkeyPatch):
    files = []

    def quantize(file: Path, target: Path, reader: Any) -> None:
        files.append((file.read_bytes(), reader))
        measure.onnx.save(measure.onnx.ModelProto(producer_name="quantized"), target)

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", quantize)
    rows = np.zeros((2, 3, 8), np.float32)
    assert b"quantized" in of_quantize_static(b"file", [rows[:1], rows[1:]])
    ((content, reader),) = files
    assert content == b"file"
    assert [reader.get_next()["x"].shape for _ in range(2)] == [(1, 3, 8)] * 2
    assert reader.get_next() is None
