"""Networks that work in blocks of a dynamic length are captured for any number of them, or refused with the line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normfold.export.capture.blocks import join_blocks, take_blocks, take_rest
from normfold.export.capture.capture import SPLITS, capture
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.errors import CaptureError
from normfold.export.graphs.runtime import Runtime
from normfold.export.graphs.serialize import to_bytes
from normfold.export.inputs.specs import parse_inputs
from normfold.export.pipeline import export_model
from normfold.export.request import ExportRequest

Body = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A convolution with zero padding and a BatchNorm on each block, which ``way`` cuts and joins."""

    def __init__(self, way: Callable[[Body, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.out = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Conv1d(8, 2, 1)
        self.norm.running_mean.normal_()  # type: ignore[operator]
        self.way = way
        self.eval()

    def body(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.norm(self.conv(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self.body, x)


WAYS: dict[str, Callable[[Body, Tensor], Tensor]] = {
    "cat": lambda f, x: torch.cat([f(b) for b in x.split(10, -1)], -1),
    "cat of an axis between": lambda f, x: torch.cat([f(b).transpose(1, 2)[..., None] for b in x.split(10, 2)], 1),
    "cat along the batch": lambda f, x: torch.cat([f(b).mean(-1) for b in x.split(10, -1)]),
    "stack": lambda f, x: torch.stack([f(b).amax(-1) for b in x.split(split_size=10, dim=-1)], 1),
    "sum": lambda f, x: sum(f(b).mean(-1) for b in x.split(10, -1)),  # type: ignore[return-value]
    "of an axis that is not the last": lambda f, x: torch.cat(
        [f(b.transpose(1, 2)) for b in x.transpose(1, 2).split(10, 1)], -1
    ),
    "of what a convolution made of the length": lambda f, x: torch.cat([f(b) for b in x[..., 1::2].split(4, -1)], -1),
    "the batch": lambda f, x: torch.cat([f(b) for b in x.split(4)]),
    "single entries": lambda f, x: torch.cat([f(b) for b in x.split(1, -1)], -1),
}


@pytest.mark.parametrize("way", WAYS)
def test_blocks_that_are_each_computed_alone_are_captured_for_every_number_of_blocks(way: str) -> None:
    network = Net(WAYS[way])
    specs = parse_inputs(["x=FP32[N,3,L]"])
    model = capture(NamedNetwork(network, ["x"]), specs, {"N": 2, "L": 32})
    assert len(model.meta[SPLITS]) == 1
    runtime = Runtime(to_bytes(model), optimised=False)
    for batch, length in ((2, 32), (1, 2), (3, 9), (1, 10), (2, 11), (5, 20), (9, 45)):
        x = np.random.default_rng(1).standard_normal((batch, 3, length)).astype(np.float32)
        with torch.no_grad():
            expected = network(torch.from_numpy(x)).numpy()
        (got,) = runtime.run({"x": x}).values()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("length", "axis"), [(1, 1), (4, 1), (5, 1), (12, 1), (13, 2)])
def test_the_operators_themselves_compute_what_their_translations_do(length: int, axis: int) -> None:
    x = torch.randn(2, 3, 4).repeat_interleave(length, axis).narrow(axis, 0, length)
    blocks, rest = take_blocks(x, 4, axis), take_rest(x, 4, axis)
    count = max(1, (length - 1) // 4)
    assert blocks.shape[0] == 2 * count
    assert blocks.shape[axis] == 4
    assert rest.shape[axis] == (length - 1) % 4 + 1
    torch.testing.assert_close(join_blocks(blocks, rest, x, 4, axis, axis, False), x)
    stacked = join_blocks(blocks.sum(axis), rest.sum(axis), x, 4, axis, 0, True)
    torch.testing.assert_close(stacked, torch.stack([b.sum(axis) for b in x.split(4, axis)]))


def test_a_range_with_room_for_one_block_needs_no_blocks() -> None:
    network = Net(WAYS["cat"])
    specs = parse_inputs(["x=FP32[N,3,L:2..10]"])
    model = capture(NamedNetwork(network, ["x"]), specs, {"N": 2, "L": 8})
    assert model.meta[SPLITS] == ()
    assert [n.op_type for n in model.graph] == ["Conv", "BatchNormalization", "Relu", "Conv"]


def test_a_range_without_room_for_two_blocks_and_a_rest_is_refused() -> None:
    network = NamedNetwork(Net(WAYS["cat"]), ["x"])
    with pytest.raises(CaptureError, match=r"into blocks of 10 at test_blocks\.py"):
        capture(network, parse_inputs(["x=FP32[N,3,L:2..15]"]), {"N": 2, "L": 8})


def test_a_size_that_the_values_decide_is_refused() -> None:
    network = NamedNetwork(Net(lambda f, x: torch.cat(list(x[0, 0].nonzero()[:, 0].split(4)))), ["x"])
    with pytest.raises(CaptureError):
        capture(network, parse_inputs(["x=FP32[N,3,L]"]), {"N": 2, "L": 8})


def product(f: Body, x: Tensor) -> Tensor:
    whole = torch.ones(())
    for block in x.split(10, -1):
        whole = whole * f(block).mean(-1)
    return whole


def test_blocks_that_are_joined_in_another_way_are_refused_with_the_line_and_what_to_write() -> None:
    network = NamedNetwork(Net(product), ["x"])
    sentence = r"into blocks of 10 at test_blocks\.py:\d+ in product: .* joined by torch.cat, torch.stack or sum can be"
    with pytest.raises(CaptureError, match=sentence):
        capture(network, parse_inputs(["x=FP32[N,3,L]"]), {"N": 2, "L": 32})


def exported(way: Callable[[Body, Tensor], Tensor], folder: Path) -> tuple[str, ...]:
    request = ExportRequest(Net(way), folder, "net", inputs=["x=FP32[N,3,L:2..]"], variant="folded")
    report = export_model(request)
    assert report.folding.batchnorms_after == 0
    return report.verification.cases


def test_blocks_are_proved_on_both_sides_of_every_border(tmp_path: Path) -> None:
    cases = exported(WAYS["cat"], tmp_path)
    for length in (10, 11, 20, 21, 36):
        assert f"N=2 L={length}" in cases


@pytest.mark.parametrize(
    "way",
    [
        lambda f, x: sum(f(b).mean(-1) for b in x.split(10, -1)) / len(x.split(10, -1)),
        lambda f, x: torch.cat([f(b / b.std()) for b in x.split(6)]),
    ],
    ids=["their number is read", "a statistic of the block"],
)
def test_blocks_whose_graph_is_not_the_network_are_never_published(
    way: Callable[[Body, Tensor], Tensor], tmp_path: Path
) -> None:
    with pytest.raises(CaptureError, match=r"into blocks of .* \(the graph that was captured is not the network"):
        exported(way, tmp_path)
    assert not (tmp_path / "net").exists()
