"""The folded network is one like any other: it saves, loads, copies, trains, scripts, exports, and keeps its types."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from normfold.export.fold import fold_module

from .networks import BatchNorm, Residual, block, checked, filled, inputs


def with_everything() -> nn.Module:
    """Return a network whose fold holds a carrier, clamps by channel and a PReLU."""
    return filled(
        nn.Sequential(
            *block(3, 4, 3, 1),
            nn.MaxPool1d(2),
            nn.Conv1d(4, 5, 3, padding=1),
            nn.PReLU(5),
            nn.BatchNorm1d(5),
            Residual3(),
        ),
    )


class Residual3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.residual = nn.Conv1d(5, 3, 3, padding=1), Residual()

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(self.mix(x))


EXAMPLE = inputs((2, 3, 20))


def test_it_saves_and_loads() -> None:
    folded, _ = checked(with_everything(), EXAMPLE)
    held = io.BytesIO()
    torch.save(folded.state_dict(), held)
    held.seek(0)
    other = copy.deepcopy(folded)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(held, weights_only=True))
    assert torch.equal(other(EXAMPLE), folded(EXAMPLE))
    assert torch.equal(pickle.loads(pickle.dumps(folded))(EXAMPLE), folded(EXAMPLE))  # noqa: S301


def test_layers_keep_their_names_and_their_place_in_the_state() -> None:
    network = filled(nn.Sequential(*block(3, 4, 3, 1), nn.Conv1d(4, 2, 3)))
    folded, _ = checked(network, EXAMPLE)
    assert set(folded.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert all(p.requires_grad for p in folded.parameters())


def test_what_was_frozen_stays_frozen() -> None:
    network = filled(nn.Sequential(*block(3, 4, 3, 1), nn.Conv1d(4, 2, 3)))
    network[0].requires_grad_(False)
    folded, _ = checked(network, EXAMPLE)
    assert not any(p.requires_grad for p in folded.get_submodule("0").parameters())
    folded(EXAMPLE).sum().backward()
    assert folded.get_parameter("3.weight").grad is not None


def test_torch_export_keeps_its_length_free() -> None:
    network = filled(
        nn.Sequential(*block(3, 4, 3, 1), nn.Conv1d(4, 5, 3, padding=1), nn.PReLU(5), nn.BatchNorm1d(5), Residual3())
    )
    folded, _ = checked(network, EXAMPLE)
    shapes = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("length")},)
    program = torch.export.export(folded, (EXAMPLE,), dynamic_shapes=shapes)
    longer = inputs((3, 3, 31))
    torch.testing.assert_close(program.module()(longer), network(longer), rtol=1e-12, atol=1e-12)


def test_torchscript_takes_it() -> None:
    network = with_everything()
    folded, _ = checked(network, EXAMPLE)
    for script in (torch.jit.script(folded), torch.jit.trace(folded, EXAMPLE)):
        torch.testing.assert_close(script(EXAMPLE), network(EXAMPLE), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_rounded_once_to_their_own_type(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
    network = filled(network).to(dtype)
    folded, _ = fold_module(network, EXAMPLE.to(dtype))
    conv, bn = network[0], network[1]
    assert isinstance(bn, BatchNorm)
    assert bn.running_var is not None
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    want = (conv.weight.double() * scale[:, None, None]).to(dtype)
    assert torch.equal(folded.get_parameter("0.weight"), want)


def test_float32_is_as_close_to_float64_as_before() -> None:
    network = with_everything().float()
    folded, _ = fold_module(network, EXAMPLE.float())
    with torch.no_grad():
        want = copy.deepcopy(network).double()(EXAMPLE.float().double())
        errors = [float((n(EXAMPLE.float()) - want).abs().max()) for n in (network, folded)]
    # Twice the error of the network itself, and the rounding of the result.
    assert errors[1] <= 2 * errors[0] + 8 * torch.finfo(torch.float32).eps * float(want.abs().max())


def test_an_onnx_model_is_folded_without_torch() -> None:
    program = """
import sys
import onnx_ir as ir
from normfold.export.fold import fold

model = ir.from_onnx_text('''
<ir_version: 9, opset_import: ["": 18]>
graph (float[1,2,5] x) => (float[1,3,3] y)
<float[3,2,3] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, float[3] s = {1,2,3}, float[3] b = {0,1,2},
 float[3] m = {1,1,1}, float[3] v = {4,4,4}>
{
    c = Conv <kernel_shape: ints = [3]> (x, w)
    y = BatchNormalization (c, s, b, m, v)
}''')
report = fold(model)
print(report.batchnorms_before, report.batchnorms_after, [node.op_type for node in model.graph], "torch" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", program], check=True, timeout=120, capture_output=True, text=True)
    assert printed.stdout == "1 0 ['Conv'] False\n"


def test_the_report_counts_calls_and_numbers() -> None:
    network = filled(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()))
    _, report = checked(network, EXAMPLE)
    assert (report.nodes_before, report.nodes_after) == (3, 2)
    assert (report.parameters_before, report.parameters_after) == (40 + 16, 40)
    assert [(f.name, f.kind, f.how) for f in report.folds] == [("1", "BatchNorm", "back into '0'")]
