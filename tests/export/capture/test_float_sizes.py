"""Sizes that a network computes in floats: at some lengths float32 gives another one."""

from __future__ import annotations

import math

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.export.capture.capture import capture
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.graphs.exact import Graph
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.specs import parse_inputs


class Shortened(nn.Module):
    """Its input, cut and padded to lengths that are computed in floats; and multiplied by such a number."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-1]
        return {
            "0.7 L": x[..., : math.floor(size * 0.7)],
            "0.29 L": x[..., : math.trunc(0.29 * size)],
            "0.55 L": x[..., : math.ceil(size * 0.55)],
            "0.1 L + 0.2 L": x[..., : math.floor(size * 0.1 + size * 0.2)],
            "L - 1 by 0.7": x[..., : math.floor((size - 1) * 0.7 + 1.0)],
            "L / 0.7": F.pad(x, (0, math.floor(size / 0.7) - size)),
            "√L": x[..., : math.floor(size**0.5)],
            "nearest to 0.35 L": x[..., : round(size * 0.35)],
            "by a scale": F.interpolate(x, scale_factor=0.7, mode="linear", recompute_scale_factor=True),
            "numbers": x * size**0.5 + size / 3 - size * 0.1 + 2 * size,
        }


def test_they_are_those_of_the_network_at_every_length() -> None:
    network = NamedNetwork(Shortened().eval(), ["x"])
    graph = Graph.of(capture(network, parse_inputs(["x=FP32[N,3,L]"]), {"N": 2, "L": 32}))
    run = Runtime(graph.content, optimised=False).run
    for length in (4, 10, 11, 20, 49, 50, 70, 90, 100, 110, 170, 180, 200, 220, 330, 400):
        x = np.random.default_rng(0).standard_normal((2, 3, length)).astype(np.float32)
        wanted, got = network.run({"x": x}), run({"x": x})
        for name, array in wanted.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-4, err_msg=f"{name}, L = {length}")
