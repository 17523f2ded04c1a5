"""InstanceNorms: with running statistics they are BatchNorms in evaluation, without they are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from normfold.export.capture.capture import capture
from normfold.export.capture.capture_errors import refuse_training_modules
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.errors import CaptureError
from normfold.export.fold import fold
from normfold.export.graphs.exact import Graph
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.specs import parse_inputs


def network_of(axes: int, **given: Any) -> NamedNetwork:
    """A convolution and an InstanceNorm with numbers as training leaves them."""
    torch.manual_seed(0)
    conv, norm = [(nn.Conv1d, nn.InstanceNorm1d), (nn.Conv2d, nn.InstanceNorm2d)][axes - 1]
    layer: Any = norm(4, **given)
    for numbers in (layer.running_mean, layer.weight, layer.bias):
        if numbers is not None:
            nn.init.normal_(numbers)
    if layer.running_var is not None:
        nn.init.uniform_(layer.running_var, 0.5, 2)
    return NamedNetwork(nn.Sequential(conv(3, 4, 3), layer, nn.Sigmoid()).eval(), ["x"])


def captured(network: NamedNetwork, axes: int) -> ir.Model:
    return capture(network, parse_inputs([f"x=FP32[N,3,{'9,L' if axes == 2 else 'L'}]"]), {"N": 2, "L": 12})


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def same(model: ir.Model, network: NamedNetwork, axes: int) -> None:
    shape = (3, 3, 15) if axes == 1 else (3, 3, 9, 15)
    inputs = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    answer = Runtime(Graph.of(model).content, optimised=False).run(inputs)["output"]
    np.testing.assert_allclose(answer, network.run(inputs)["output"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("axes", [1, 2])
def test_an_instance_norm_with_running_statistics_folds(axes: int, affine: bool) -> None:
    network = network_of(axes, track_running_stats=True, affine=affine)
    model = captured(network, axes)
    assert operators(model).count("BatchNormalization") == 1
    same(model, network, axes)
    report = fold(model)
    assert (report.affines_before, report.affines_after) == (1, 0)
    assert operators(model) == ["Conv", "Sigmoid"]
    same(model, network, axes)


@pytest.mark.parametrize("axes", [1, 2])
def test_an_instance_norm_with_the_statistics_of_its_input_is_no_batch_norm(axes: int) -> None:
    network = network_of(axes, affine=True)
    model = captured(network, axes)
    assert "BatchNormalization" not in operators(model)
    same(model, network, axes)


def test_an_instance_norm_that_stays_in_training_is_refused() -> None:
    network = network_of(1, track_running_stats=True).network
    network[1].train()
    with pytest.raises(CaptureError, match="stays in training mode"):
        refuse_training_modules(network)
