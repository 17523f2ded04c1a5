"""Any network that hypothesis can think of computes what it computed, at lengths that it was not folded with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.export.errors import FoldError
from normfold.export.fold import fold_module

EXAMPLES = int(os.environ.get("NORMFOLD_EXAMPLES", "150"))
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.ReLU6,
    lambda: nn.LeakyReLU(0.2),
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Dropout,
)


@dataclass(frozen=True)
class Step:
    """One drawn step: its kind, what it reads (counted back from the newest value), and numbers for its kind."""

    kind: str
    reads: int
    also: int
    a: int
    b: int


class Drawn(nn.Module):
    """The network of some steps, each a function of the network (it is copied) and of the values that it reads."""

    def __init__(self, steps: list[Step], channels: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.steps: list[tuple[Callable[..., Tensor], tuple[int, ...]]] = []
        self.layers = nn.ModuleList()
        # (channels, how the length follows from the input's: values with one key have one length)
        self.kinds = [(channels, "L")]
        for step in steps:
            self.add(step)
        self.add(Step("conv", 0, 0, 2, 3))

    def layer(self, layer: nn.Module, reads: int, channels: int, length: str) -> None:
        k = len(self.layers)
        self.layers.append(layer)
        self.emit(lambda net, x: net.layers[k](x), (reads,), channels, length)

    def emit(self, function: Callable[..., Tensor], reads: tuple[int, ...], channels: int, length: str) -> None:
        self.steps.append((function, reads))
        self.kinds.append((channels, length))

    def add(self, step: Step) -> None:
        i = len(self.kinds) - 1 - step.reads % len(self.kinds)
        (n, length), a, b = self.kinds[i], step.a, step.b
        same = [j for j, kind in enumerate(self.kinds) if kind == (n, length)]
        other = same[step.also % len(same)]
        if step.kind == "conv":
            k, out, groups = 1 + a % 4, 1 + b % 6, 1
            if a >= 9:
                groups, out = n, n * (1 + b % 2)
            padding = ("same", 0, 1, k - 1)[b % 4]
            mode = (
                ("zeros", "zeros", "replicate", "circular")[(a + b) % 4]
                if padding != "same" and padding < 3
                else "zeros"
            )
            conv = nn.Conv1d(n, out, k, padding=padding, groups=groups, bias=a % 3 > 0, padding_mode=mode)
            self.layer(conv, i, out, length if padding == "same" else f"{length}+{2 * padding - k + 1}")
        elif step.kind == "transposed":
            self.layer(nn.ConvTranspose1d(n, 1 + b % 5, 1 + a % 3, padding=a % 2), i, 1 + b % 5, f"t{a % 6}({length})")
        elif step.kind == "norm":
            norm = nn.BatchNorm1d(n)
            with torch.no_grad():
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.copy_(0.4 * torch.randn(n))
                norm.running_var.copy_(0.4 + torch.rand(n))
                norm.weight.copy_(0.5 + torch.rand(n))
                norm.bias.copy_(0.5 * torch.randn(n))
                if a % 3:
                    norm.weight[torch.rand(n) < 0.3] *= -1 if a % 3 == 1 else 0
            self.layer(norm, i, n, length)
        elif step.kind == "activation":
            self.layer(ACTIVATIONS[a % len(ACTIVATIONS)](), i, n, length)
        elif step.kind == "slopes":
            layer = nn.PReLU(n)
            with torch.no_grad():
                layer.weight.uniform_(0.1, 0.6)
            self.layer(layer, i, n, length)
        elif step.kind == "pool":
            pool = (
                nn.MaxPool1d(3, 1, 1),
                nn.AvgPool1d(3, 1, 1),
                nn.AvgPool1d(3, 1, 1, count_include_pad=False),
                nn.MaxPool1d(2),
            )[a % 4]
            self.layer(pool, i, n, length if a % 4 < 3 else f"half {length}")
        elif step.kind == "pad":
            mode = ("constant", "reflect", "replicate")[a % 3]
            self.emit(lambda net, x: F.pad(x, (1, b % 2), mode=mode), (i,), n, f"{length}+{1 + b % 2}")
        elif step.kind == "add":
            self.emit(lambda net, x, y: x + y, (i, other), n, length)
        elif step.kind == "sub":
            self.emit(lambda net, x, y: x - y, (i, other), n, length)
        elif step.kind == "gate":
            self.emit(lambda net, x, y: x * torch.sigmoid(y), (i, other), n, length)
        elif step.kind == "cat":
            joined = [j for j, (m, other_length) in enumerate(self.kinds) if other_length == length and m + n <= 12]
            if joined:
                j = joined[step.also % len(joined)]
                self.emit(lambda net, x, y: torch.cat([x, y], 1), (i, j), n + self.kinds[j][0], length)
        elif step.kind == "split" and n > 1:
            first = 1 + a % (n - 1)
            self.emit(lambda net, x: x.split([first, n - first], 1)[b % 2], (i,), (first, n - first)[b % 2], length)
        elif step.kind == "slice" and n > 1:
            self.emit(lambda net, x: x[:, b % n :, 1:], (i,), n - b % n, f"{length}+-1")
        elif step.kind == "linear":
            at = len(self.layers)
            self.layers.append(nn.Linear(n, 1 + b % 5, bias=a % 2 > 0))
            self.emit(lambda net, x: net.layers[at](x.transpose(1, 2)).permute(0, 2, 1), (i,), 1 + b % 5, length)
        elif step.kind == "view":
            self.emit(
                lambda net, x: x.reshape(x.size(0), n, -1) if a % 2 else x.unsqueeze(2).flatten(2), (i,), n, length
            )
        elif step.kind == "affine":
            factor, offset = nn.Parameter(torch.randn(n, 1)), nn.Parameter(torch.randn(n, 1))
            self.register_parameter(f"factor{len(self.steps)}", factor)
            self.register_parameter(f"offset{len(self.steps)}", offset)
            names = (f"factor{len(self.steps)}", f"offset{len(self.steps)}")
            self.emit(lambda net, x: x * getattr(net, names[0]) + getattr(net, names[1]), (i,), n, length)

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [x]
        for function, reads in self.steps:
            values.append(function(self, *(values[j] for j in reads)))
        return [values[-1]]


KINDS = ["conv"] * 5 + ["norm"] * 6 + ["activation"] * 4 + ["pool", "add", "cat"] * 2
KINDS += ["transposed", "slopes", "pad", "sub", "gate", "split", "slice", "linear", "view", "affine"]
SMALL = st.integers(0, 11)
STEPS = st.builds(Step, st.sampled_from(KINDS), st.sampled_from([0, 0, 0, 0, 1, 2, 3]), SMALL, SMALL, SMALL)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(st.lists(STEPS, min_size=2, max_size=12), st.integers(1, 5), st.integers(0, 2**16))
def test_a_folded_network_computes_what_it_computed(steps: list[Step], channels: int, seed: int) -> None:
    network = Drawn(steps, channels, seed).double().eval()
    note("\n".join(map(str, steps)))
    lengths = (33, 40, 58)
    try:
        want = [network(x)[0] for x in drawn_inputs(channels, lengths)]
    except RuntimeError:
        return  # the drawn network does not run at these lengths
    try:
        folded, report = fold_module(network, drawn_inputs(channels, lengths)[0])
    except FoldError as refusal:
        if "in place" not in str(refusal):
            raise
        return  # a ReLU in place behind a view or a slice of what others read
    note(str(report))
    note(folded.code)
    assert report.affines_after <= report.affines_before
    for x, before in zip(drawn_inputs(channels, lengths), want, strict=True):
        (after,) = folded(x)
        assert after.shape == before.shape
        assert float((after - before).detach().abs().max()) < 1e-10 * max(1.0, float(before.detach().abs().max()))


def drawn_inputs(channels: int, lengths: tuple[int, ...]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, n, dtype=torch.float64, generator=draw) for n in lengths]
