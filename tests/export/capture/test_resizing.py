"""F.interpolate where ONNX's Resize reads other entries, or gives another number of them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.export.capture.capture import capture
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.graphs.exact import Graph
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.specs import parse_inputs


class Resized(nn.Module):
    """Its input, resized in many ways."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            "nearest 16": F.interpolate(x, size=16),
            "nearest 20": F.interpolate(x, size=20),
            "nearest 4/7": F.interpolate(x, size=x.shape[-1] * 4 // 7),
            "exact 20": F.interpolate(x, size=20, mode="nearest-exact"),
            "nearest by 0.7": F.interpolate(x, scale_factor=0.7),
            "nearest by 0.29": F.interpolate(x, scale_factor=0.29),
            "exact by 0.7": F.interpolate(x, scale_factor=0.7, mode="nearest-exact"),
            "linear by 0.7": F.interpolate(x, scale_factor=0.7, mode="linear"),
            "ends by 0.7": F.interpolate(x, scale_factor=0.7, mode="linear", align_corners=True),
            "nearest by 160/147": F.interpolate(x, scale_factor=160 / 147),
            "exact by 160/147": F.interpolate(x, scale_factor=160 / 147, mode="nearest-exact"),
            "linear by 160/147": F.interpolate(x, scale_factor=160 / 147, mode="linear"),
            "nearest 3, 16": F.interpolate(x[:, None], size=(3, 16)),
            "nearest 5, 20": F.interpolate(x[:, None], size=(5, 20)),
            "nearest by 2, 0.7": F.interpolate(x[:, None], scale_factor=(2, 0.7)),
            "nearest by 1, 1.1": F.interpolate(x[:, None], scale_factor=(1, 1.1)),
            "linear by 2, 0.7": F.interpolate(x[:, None], scale_factor=(2, 0.7), mode="bilinear"),
            "linear by 0.7, 2": F.interpolate(x.mT[:, None], scale_factor=(0.7, 2), mode="bilinear"),
        }


class Doubled(nn.Module):
    """Pooled and upsampled, as U-Nets do it."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        pooled = F.max_pool1d(x, 2)
        whole = F.interpolate(pooled, scale_factor=2), F.interpolate(x, size=2 * x.shape[-1])
        return F.interpolate(pooled, size=x.shape[-1]), *whole


def captured(network: nn.Module) -> tuple[NamedNetwork, Graph]:
    named = NamedNetwork(network.eval(), ["x"])
    return named, Graph.of(capture(named, parse_inputs(["x=FP32[N,3,L]"]), {"N": 2, "L": 32}))


def test_it_reads_the_entries_that_torch_reads_at_every_length() -> None:
    _, graph = captured(Resized())
    run = Runtime(graph.content, optimised=False).run
    double = NamedNetwork(Resized(), ["x"], torch.float64)
    for length in (4, 5, 7, 10, 14, 26, 28, 35, 36, 49, 52, 70, 84, 90, 100, 112, 147, 294):
        x = np.random.default_rng(0).standard_normal((2, 3, length)).astype(np.float32)
        wanted, got = double.run({"x": x.astype(np.float64)}), run({"x": x})
        for name, array in wanted.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5, err_msg=f"{name}, L = {length}")


def test_what_a_resize_computes_alike_at_every_length_stays_one() -> None:
    _, graph = captured(Doubled())
    assert [node.op_type for node in graph.model().graph].count("Resize") == 3
