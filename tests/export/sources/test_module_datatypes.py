"""The datatypes of a module's inputs: as they are asked for where the network runs so."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normfold.export.errors import InputSpecError, SourceError
from normfold.export.inputs.samples import SampleFile
from normfold.export.sources.opening import open_origin
from normfold.export.sources.origin import Origin, Request


class Inner(nn.Module):
    """Casts its input to the type of its layers, and the answer to float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(dtype)
        self.inner = dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.to(self.inner)).float()  # type: ignore[no-any-return]


def opened(network: nn.Module, text: str) -> Origin:
    return open_origin(Request(source=network.eval(), inputs=[text]), [])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_network_that_casts_inside_takes_the_input_as_it_is_asked_for(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = Inner(dtype)
    origin = opened(network, "x=FP32[N,3]")
    assert [str(spec) for spec in origin.specs] == ["x=FP32[N,3]"]
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    got = origin.run({"x": x})["output"]
    assert np.array_equal(got, network(torch.from_numpy(x)).detach().numpy())
    graph = origin.graph(origin.specs, {"N": 2}, 18).graph
    assert str(graph.inputs[0].dtype) == "FLOAT"


def test_a_float32_network_that_casts_takes_other_floats() -> None:
    assert opened(Inner(torch.float32), "x=FP16[N,3]").specs[0].datatype.name == "FP16"


def test_a_sample_in_float32_is_taken_as_it_is_by_a_network_that_casts() -> None:
    sample = SampleFile("sample 1", {"x": np.zeros((1, 3), np.float32)})
    origin = open_origin(Request(source=Inner(torch.float16).eval()), [sample])
    assert origin.specs[0].datatype.name == "FP32"


def test_a_sample_becomes_what_the_network_computes_in() -> None:
    for dtype, given in ((torch.float16, np.float32), (torch.float32, np.float64)):
        network = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).to(dtype).eval()
        origin = open_origin(Request(source=network), [SampleFile("sample 1", {"x": np.zeros((1, 3), given)})])
        assert origin.specs[0].datatype.name == {torch.float16: "FP16", torch.float32: "FP32"}[dtype]


def test_a_network_that_does_not_cast_is_answered_with_its_own_datatype() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).half()
    with pytest.raises(InputSpecError, match=re.escape("computes in FP16 and does not run with it: write --input 'x=")):
        opened(network, "x=FP32[N,3]")


@pytest.mark.parametrize("text", ["x=FP32[N,3,L]", "x=FP64[N,3,L]"])
def test_convolutions_in_float64_are_refused_at_once(text: str) -> None:
    network = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)).double()
    with pytest.raises(SourceError, match=r"'0' of .* computes in float64.*call network.float\(\)"):
        opened(network, text)
