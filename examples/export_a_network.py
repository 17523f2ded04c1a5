"""Export a network from memory, as in a notebook, and print the report: `python examples/export_a_network.py`."""

from __future__ import annotations

import argparse

import torch
from torch import nn

import normfold

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--repository", default="repository")
given = parser.parse_args()

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv1d(3, 16, 5, padding=2), nn.ReLU(), nn.BatchNorm1d(16),
    nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(), nn.BatchNorm1d(16),
    nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 2),
)  # fmt: skip
with torch.no_grad():
    for norm in network[2::3][:2]:
        for statistic in (norm.weight, norm.bias, norm.running_mean):
            statistic.normal_()  # as after training: not 1 or 0, and half of the gammas negative

report = normfold.export_network(
    network,
    inputs="x=FP32[N,3,L]",
    standardize={"x": ([0.1, 0.2, 0.3], 2.0)},  # clients send raw numbers
    softmax="output",  # and get probabilities
    labels=["quiet", "loud"],
    repository=given.repository,
    name="noises",
)
print(report)
