"""Operators that torch's exporter has no translation for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.export.capture.capture import capture
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.errors import CaptureError
from normfold.export.graphs.exact import Graph
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.specs import parse_inputs


class Computing(nn.Module):
    """A function of its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / x.abs().amax(),
        lambda x: x - x.amin(),
        lambda x: x.amax((0, 2), keepdim=True) + x.amin(1, keepdim=True),
        lambda x: x.amin(-1),
        lambda x: x.clamp(-1, 0.5),
        lambda x: x.clamp(max=1, min=-0.5),
        lambda x: (3 * x).long().clamp(0, 1.5),
        lambda x: torch.cond(x.sum() > 0, lambda y: y.clamp(-1, 0.5), lambda y: y * 2, (x,)),
        lambda x: F.rrelu(x),
        lambda x: F.rrelu(x, 0.1, 0.7),
        lambda x: F.avg_pool2d(x[:, :, None], (1, 2), divisor_override=3),
        lambda x: F.avg_pool2d(x[:, None], 3, 2, 1, count_include_pad=False, divisor_override=2),
        lambda x: F.avg_pool2d(x[:, None], 3, 2, 1, count_include_pad=False),
        lambda x: F.avg_pool3d(x[:, None, None], (1, 2, 2), divisor_override=5),
    ],
)
def test_it_computes_what_the_network_does(function: Callable[[Tensor], Tensor]) -> None:
    network = NamedNetwork(Computing(function).eval(), ["x"])
    model = capture(network, parse_inputs(["x=FP32[N,3,L]"]), {"N": 2, "L": 8})
    inputs = {"x": np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)}
    answer = Runtime(Graph.of(model).content, optimised=False).run(inputs)["output"]
    np.testing.assert_allclose(answer, network.run(inputs)["output"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["mean", "sum"])
def test_a_bag_of_embeddings_whose_loop_gives_a_value_from_outside_it_is_a_graph(mode: str) -> None:
    bag = nn.EmbeddingBag(9, 4, mode=mode, padding_idx=2)
    network = NamedNetwork(bag.eval(), ["input"])
    model = capture(network, parse_inputs(["input=INT64[N,L]"]), {"N": 2, "L": 8})
    inputs = {"input": np.random.default_rng(0).integers(0, 9, size=(3, 5))}
    answer = Runtime(Graph.of(model).content, optimised=False).run(inputs)["output"]
    np.testing.assert_allclose(answer, network.run(inputs)["output"], rtol=1e-5)


def test_a_divisor_of_windows_of_several_sizes_is_refused() -> None:
    pool = nn.AvgPool2d((1, 3), (1, 2), ceil_mode=True, divisor_override=3)
    network = NamedNetwork(nn.Sequential(nn.Unflatten(1, (3, 1)), pool).eval(), ["x"])
    with pytest.raises(CaptureError, match="an average-pool has divisor_override and ceil_mode=True"):
        capture(network, parse_inputs(["x=FP32[N,3,L]"]), {"N": 2, "L": 8})


def test_slopes_that_are_drawn_are_refused() -> None:
    network = NamedNetwork(Computing(lambda x: F.rrelu(x, training=True)).eval(), ["x"])
    with pytest.raises(CaptureError, match="draws the slopes of an RReLU"):
        capture(network, parse_inputs(["x=FP32[N,3]"]), {"N": 2})
