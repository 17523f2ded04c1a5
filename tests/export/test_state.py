"""Networks that keep something between calls are refused by name; writing what no answer depends on is allowed."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from normfold.cli.main import main
from normfold.export.capture.capture import capture
from normfold.export.capture.mutation import refuse_written_buffers
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.errors import FoldError, StateError
from normfold.export.fold import fold
from normfold.export.inputs.specs import parse_inputs
from normfold.export.sources.program_origin import open_program
from normfold.export.state import Held, kept_state, message, other_inputs

SPECS = parse_inputs(["x=FP32[N,3,L]"])


class CachedConv(nn.Conv1d):
    """Keeps the end of the last block."""

    def __init__(self) -> None:
        super().__init__(3, 3, 3)
        self.register_buffer("past", torch.zeros(1, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.past.expand(len(x), -1, -1), x], -1)
        self.past.copy_(x[:1, :, -2:])
        return super().forward(x)


class Level(nn.Module):
    """Keeps a running level, which it assigns."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.level = 0.9 * self.level + 0.1 * x.abs().mean()
        return x / self.level


class InData(Level):
    def forward(self, x: Tensor) -> Tensor:
        self.level.data.mul_(0.9).add_(0.1 * x.abs().mean())
        return x / self.level


class Recurrent(nn.Module):
    """Keeps a GRU's state in an attribute."""

    h: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, self.h = self.gru(x.transpose(1, 2), self.h)
        return y.transpose(1, 2)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class InList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.blocks.append(x)
        return torch.stack(self.blocks).sum(0)


class Outside(nn.Module):
    """Keeps its state where no module holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.held = {"box": object()}
        box = [torch.zeros(())]

        def forward(x: Tensor) -> Tensor:
            box[0] = box[0] + x.sum()
            return x + box[0]

        self.forward = forward  # type: ignore[method-assign]


class Shown(nn.Module):
    """Keeps its last attention for whoever wants to draw it, a scratch buffer, and a counter that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("scratch", torch.zeros(3))
        self.weight = nn.Parameter(torch.full((3, 1), 2.0))
        self.attention: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.scratch.copy_(x.mean((0, 2)))
        self.attention = x.softmax(-1)
        return self.attention * x + self.scratch[:, None]


class Limited(nn.Module):
    """Limits the norm of its weights in forward(), as EEGNet's first implementations do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(3 * torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=1)
        return torch.einsum("oc,ncl->nol", self.weight, x)


def network(layer: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 3, 3), nn.BatchNorm1d(3), layer()).eval()


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (CachedConv, "writes its buffer `2.past` when it runs, so its answer depends on earlier calls; make the state"),
        (Level, "its buffer `2.level`"),
        (InData, "its buffer `2.level`"),
        (Recurrent, "its attribute `2.h`"),
        (Counter, "its attribute `2.calls`"),
        (InList, "its attribute `2.blocks`"),
        (Outside, "answers the same input differently when it is called again, so its answer depends on"),
    ],
)
def test_state_is_refused_by_name_and_left_as_it_was(layer: Any, expected: str) -> None:
    stateful = network(layer)
    before = Held(stateful)
    x = np.random.default_rng(0).standard_normal((2, 3, 9)).astype(np.float32)
    with pytest.raises(StateError, match="make the state an input and an output of forward") as caught:
        NamedNetwork(stateful, ["x"]).run({"x": x})
    assert expected in str(caught.value)
    assert before.changes() == []
    with pytest.raises(FoldError, match="make the state an input and an output of forward") as folding:
        fold(stateful, torch.from_numpy(x))
    assert expected in str(folding.value)
    assert "normfold export" not in str(folding.value)
    assert layer is Outside or before.changes() == []


def test_several_buffers_are_counted_and_the_first_is_named() -> None:
    stateful = nn.Sequential(*(CachedConv() for _ in range(6))).eval()
    found = kept_state(stateful, lambda n: stateful(other_inputs(torch.ones(1, 3, 9), n)))
    assert found is not None
    assert "its buffer `0.past` when it runs (`1.past`, `2.past`, `3.past` and 2 more too), so" in message(found)


@pytest.mark.parametrize("layer", [Shown, Limited])
def test_what_is_written_but_never_read_is_exported_and_folded_and_every_run_starts_afresh(layer: Any) -> None:
    harmless = network(layer)
    named, before = NamedNetwork(harmless, ["x"]), Held(harmless)
    x = np.random.default_rng(0).standard_normal((2, 3, 9)).astype(np.float32)
    first = named.run({"x": x})["output"]
    named.run({"x": -x})
    np.testing.assert_array_equal(named.run({"x": x})["output"], first)
    if layer is Shown:
        model = capture(named, SPECS, {"N": 2, "L": 9})
        assert [o.name for o in model.graph.outputs] == ["output"]
    assert before.changes() == []


class Settings(dict[str, Any]):
    """A configuration that is read like an object, as many libraries have one; its values become settings, too."""

    def __init__(self, values: Any = (), **more: Any) -> None:
        super().__init__()
        for key, value in {**dict(values), **more}.items():
            self[key] = Settings(value) if isinstance(value, dict) else value

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Names(list[str]):
    """A list with a constructor of its own."""

    def __init__(self, first: str, *others: str) -> None:
        super().__init__([first, *others])


class Configured(nn.Module):
    """Holds settings of kinds that cannot be made again from their contents."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Settings(scale=2.0, inner={"shift": 1.0})
        self.names, self.seen = Names("a", "b"), deque([1.0, 2.0], maxlen=2)
        self.counts: dict[str, int] = defaultdict(int, a=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.config.scale * x + self.config.inner.shift + self.seen[1] * len(self.names)


def test_settings_of_every_kind_are_left_as_they_are() -> None:
    """A copy of a class derived from dict was a dict: the network was refused, because it had no attribute then."""
    configured = network(Configured)
    layer = configured[2]
    held = (layer.config, layer.names, layer.seen, layer.counts)
    x = np.random.default_rng(0).standard_normal((2, 3, 9)).astype(np.float32)
    first = NamedNetwork(configured, ["x"]).run({"x": x})["output"]
    capture(NamedNetwork(configured, ["x"]), SPECS, {"N": 2, "L": 9})
    now = (layer.config, layer.names, layer.seen, layer.counts)
    assert now == held
    assert [type(each) for each in now] == [Settings, Names, deque, defaultdict]
    np.testing.assert_array_equal(NamedNetwork(configured, ["x"]).run({"x": x})["output"], first)
    before = Held(configured)
    layer.seen.append(3.0)
    layer.counts["b"] += 1
    before.put_back()
    assert (list(layer.seen), layer.seen.maxlen, layer.counts["c"]) == ([1.0, 2.0], 2, 0)


def test_random_numbers_are_not_taken_for_state() -> None:
    noisy = nn.Sequential(nn.Dropout(0.5)).train()
    assert kept_state(noisy, lambda n: noisy(torch.ones(2, 99))) is None


def test_torchs_program_itself_shows_a_buffer_that_only_the_next_call_but_five_reads(tmp_path: Path) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * (self.calls > 20)

    dynamic = torch.export.Dim.DYNAMIC
    late = nn.Sequential(nn.Conv1d(3, 3, 1), Late()).eval()
    x = torch.randn(2, 3, 9)
    assert kept_state(late, lambda n: late(other_inputs(x, n))) is None, "too late for a few calls to show"
    with pytest.raises(StateError, match=r"its buffer `1\.calls`"):
        capture(NamedNetwork(late, ["x"]), SPECS, {"N": 2, "L": 9})
    program = torch.export.export(late, (x,), dynamic_shapes=({0: dynamic, 2: dynamic},))
    torch.export.save(program, tmp_path / "late.pt2")
    with pytest.raises(StateError, match=r"its buffer `1\.calls`"):
        open_program(tmp_path / "late.pt2", ())
    refuse_written_buffers(torch.export.export(network(Shown), (x,)))


STREAM = """
import torch
from torch import nn

class Conv(nn.Conv1d):
    def __init__(self, *a):
        super().__init__(*a)
        self.register_buffer("past", torch.zeros(1, self.in_channels, self.kernel_size[0] - 1))
    def forward(self, x):
        x = torch.cat([self.past, x], -1)
        self.past.copy_(x[..., -self.past.size(-1):])
        return super().forward(x)

def streaming():
    torch.manual_seed(0)
    return nn.Sequential(Conv(3, 8, 5), nn.BatchNorm1d(8), Conv(8, 2, 3))
"""


def test_a_streaming_network_is_not_published(directory: Path) -> None:
    (directory / "nets.py").write_text(STREAM)
    command = ["export", "nets.py:streaming", "--input", "x=FP32[1,3,L]", "--repository", "r", "--name", "stream"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: the network writes its buffer `0.past` when it runs (`2.past` too), so its")
    assert not (directory / "r").exists()


def test_a_module_of_the_code_around_forward_is_left_as_it_is_and_its_state_is_found() -> None:
    norm, past = nn.BatchNorm1d(3), CachedConv()

    class Borrowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = past(norm(x))
            return y

    network, x = Borrowing().eval(), torch.randn(2, 3, 9)
    with Held(network).kept():
        network(x)
        assert norm.num_batches_tracked == 1
    assert norm.num_batches_tracked == 0
    assert not norm.running_mean.any()  # type: ignore[union-attr, operator]
    written = kept_state(network, lambda number: network(other_inputs(x, number)))
    assert written is not None
    assert "past.past" in {w.name for w in written}


def test_a_module_around_forward_of_the_name_of_a_child_is_held_beside_it() -> None:
    past = CachedConv()

    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.past = nn.Conv1d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.past(past(x))
            return y

    network = Borrowing().eval()
    with Held(network).kept():
        network(torch.ones(2, 3, 9))
        assert past.past.any()
    assert not past.past.any()


UNUSED = nn.Linear(3, 3)


def test_a_global_variable_of_the_name_of_an_attribute_is_not_held() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.UNUSED

    held = Held(Named())
    UNUSED.bias.detach().add_(1)
    assert held.changes() == []


def test_a_lazy_module_around_forward_gets_its_weights_in_the_first_run() -> None:
    lazy = nn.LazyConv1d(3, 3)

    class Borrowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = lazy(x)
            return y

    network = Borrowing().eval()
    with Held(network).kept():
        network(torch.ones(2, 4, 9))
    assert lazy.weight.shape == (3, 4, 3)
