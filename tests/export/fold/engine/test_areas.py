"""Areas: which channels of which tensors one number scales, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from tests.export.fold.graphs import graph, net_of, weights

from normfold.export.fold.engine.areas import Area, areas_of


def areas(nodes: str, **arrays: np.ndarray) -> list[Area]:
    given = {"w": weights(4, 3, 1), "v": weights(4, 4, 1), "wide": weights(4, 8, 1), "deep": weights(4, 1, 3)} | arrays
    return list(areas_of(net_of(graph(f"(float[N,3,L] x) => (float[N,4,M] y) {{ {nodes} }}", **given))))


def channels(area: Area) -> dict[str, list[int]]:
    return {tensor.name: slices.channel.tolist() for tensor, slices in area.tensors.items()}


def test_what_passes_a_scale_is_in_one_area() -> None:
    (area,) = areas("c = Conv(x, w) r = LeakyRelu(c) p = MaxPool<kernel_shape=[2]>(r) y = Conv(p, v)")
    assert channels(area) == {name: [0, 1, 2, 3] for name in ("c", "r", "p")}
    assert [(op.name, x.name) for op, x in area.readers] == [("Conv_3", "p")]


def test_both_arms_of_a_sum_have_one_scale() -> None:
    nodes = "c = Conv(x, w) r = Relu(c) d = Conv(r, v) s = Add(r, d) y = Conv(s, v2)"
    (area,) = areas(nodes, v2=weights(4, 4, 1, seed=2))
    assert set(channels(area)) == {"c", "r", "d", "s"}
    assert {x.name for _, x in area.readers} == {"r", "s"}


def test_the_tensors_of_a_concat_have_scales_of_their_own() -> None:
    one, other = areas("c = Conv(x, w) d = Conv(x, w2) j = Concat<axis=1>(c, d) y = Conv(j, wide)", w2=weights(4, 3, 1))
    assert channels(one)["j"] == [0, 1, 2, 3, -1, -1, -1, -1]
    assert channels(other)["j"] == [-1, -1, -1, -1, 0, 1, 2, 3]


def test_a_depthwise_convolution_ends_an_area_and_begins_one() -> None:
    before, behind = areas("c = Conv(x, w) d = Conv<group=4>(c, deep) y = Conv(d, v)")
    assert (channels(before), channels(behind)) == ({"c": [0, 1, 2, 3]}, {"d": [0, 1, 2, 3]})


@pytest.mark.parametrize(
    "nodes",
    [
        "c = Conv(x, w) r = Sigmoid(c) y = Conv(r, v)",
        "c = Conv(x, w) y = Relu(c)",
        "c = Conv(x, w) m = Mul(c, c) y = Conv(m, v)",
        "c = Conv(x, w) r = Clip(c, lo, hi) y = Conv(r, v)",
    ],
    ids=[
        "no scale passes",
        "an output of the network",
        "a product of two scales",
        "bounds by channel would cost nodes",
    ],
)
def test_there_is_no_area(nodes: str) -> None:
    assert [area for area in areas(nodes, lo=np.float32(0), hi=np.float32(6)) if area.start.name == "c"] == []
