"""Fold the BatchNorms of a network in the order of the book's Example 4.22: convolution, ReLU, then BatchNorm."""

import logging
import warnings

import numpy as np
import onnxruntime
import torch
from torch import nn

from normfold import fold

logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # the exporter would log that torchvision is not installed
warnings.filterwarnings("ignore", category=FutureWarning)
torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv1d(77, 64, 3), nn.ReLU(), nn.BatchNorm1d(64),
    nn.Conv1d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.BatchNorm1d(64),
    nn.Conv1d(64, 32, 1), nn.ReLU(), nn.BatchNorm1d(32),
    nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 18),
)  # fmt: skip
with torch.no_grad():
    for norm in network[2::3][:3]:
        for statistic in (norm.weight, norm.bias, norm.running_mean):
            statistic.normal_()  # as after training: not 1 or 0, and half of the gammas negative
    x = torch.randn(8, 77, 17)
    program = torch.onnx.export(network.eval(), (x,), dynamo=True, verbose=False)
    exact = network.double()(x.double()).numpy()

report = fold(program.model)  # changes the model in place
for one in report.folds:
    print(f"{one.name}: {one.how or one.reason}")
print(f"BatchNorms: {report.batchnorms_before} before, {report.batchnorms_after} after")
session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
(answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
print(
    f"largest error against PyTorch in float64: {np.abs(answer - exact).max() / np.abs(exact).max():.1e} of the scale"
)
