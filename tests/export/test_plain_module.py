"""Networks behind wrappers, with parametrized weights, or in torch's quantized numbers."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from normfold.export.capture.capture_errors import refuse_quantized
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.errors import CaptureError, CheckpointError, FoldError, SourceError
from normfold.export.fold import fold_module
from normfold.export.plain_module import duplicate, unwrapped, with_plain_weights
from normfold.export.sources.module_origin import exact
from normfold.export.sources.opening import open_origin
from normfold.export.sources.origin import Request
from normfold.export.sources.source import load_source


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 1))


class Compiled(nn.Module):
    """What torch.compile returns holds the network under this name; the import alone of torch's own takes seconds."""

    __module__ = "torch._dynamo.eval_frame"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network


@pytest.mark.parametrize("wrap", [Compiled, nn.DataParallel, lambda network: Compiled(nn.DataParallel(network))])
def test_a_wrapper_is_taken_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    inner = plain()
    assert unwrapped(wrap(inner)) is inner
    loaded = load_source(wrap(inner)).network
    assert list(dict(loaded.named_modules())) == list(dict(inner.named_modules()))


def test_a_network_without_a_wrapper_is_taken_as_it_is() -> None:
    inner = plain()
    assert unwrapped(inner) is inner
    inner._orig_mod = nn.ReLU()  # a layer of one's own under this name is no wrapped network
    assert unwrapped(inner) is inner


@pytest.mark.parametrize("wrap", [Compiled, nn.DataParallel])
def test_a_hook_on_a_wrapper_is_not_lost(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(plain())
    wrapped.register_forward_hook(lambda layer, given, answer: 2 * answer)
    with pytest.raises(CaptureError, match="around the network has a hook"):
        load_source(wrapped)
    with pytest.raises(FoldError, match="around the network has a hook"):
        fold_module(wrapped, torch.randn(2, 3, 9))


def test_a_weight_that_was_computed_is_trained_further_only_if_it_was_before() -> None:
    network = plain()
    for layer in (network[0], network[3]):
        parametrizations.weight_norm(layer)
    network[3].requires_grad_(False)
    with_plain_weights(network.eval())
    assert (network[0].weight.requires_grad, network[3].weight.requires_grad) == (True, False)


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.flip(-1)


PARAMETRIZED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "orthogonal": lambda layer: parametrizations.orthogonal(layer),
    "spectral norm": lambda layer: parametrizations.spectral_norm(layer),
    "weight norm": lambda layer: parametrizations.weight_norm(layer),
    "one's own": lambda layer: parametrize.register_parametrization(layer, "weight", Symmetric()),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_a_parametrized_weight_becomes_its_value(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(PARAMETRIZED[name](nn.Linear(8, 8)), nn.BatchNorm1d(8)).eval()
    x = torch.randn(2, 8)
    before, copied = network(x), copy.deepcopy(network)
    with_plain_weights(copied)
    assert not any(parametrize.is_parametrized(module) for module in copied.modules())
    torch.testing.assert_close(copied(x), before, rtol=0, atol=0)
    assert type(copied[0]) is nn.Linear
    torch.testing.assert_close(network(x), before, rtol=0, atol=0)  # a copy shares its class with the network


HOOKED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": lambda layer: torch.nn.utils.weight_norm(layer),
    "spectral norm": lambda layer: torch.nn.utils.spectral_norm(layer),
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "two prunings": lambda layer: prune.l1_unstructured(prune.random_unstructured(layer, "weight", 3), "weight", 3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", HOOKED)
def test_a_weight_that_a_hook_computes_is_copied_and_becomes_its_value(name: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(HOOKED[name](nn.Linear(8, 8)), nn.BatchNorm1d(8)).eval()
    x = torch.randn(2, 8)
    before, keys = network(x), list(network.state_dict())
    origin = open_origin(Request(source=network, inputs=["x=FP32[N,8]"]), [])
    assert np.array_equal(origin.run({"x": x.numpy()})["output"], before.detach().numpy())
    assert origin.reference({"x": x.numpy()})[1:] == ("PyTorch, float64", ())
    assert {node.op_type for node in origin.graph(origin.specs, {"N": 2}, 18).graph} <= {"Gemm", "BatchNormalization"}
    assert list(network.state_dict()) == keys, "the network that was given is as it was"
    torch.testing.assert_close(network(x), before, rtol=0, atol=0)
    network(x).sum().backward()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv1d(4, 3), nn.LazyBatchNorm1d(affine=False)).eval()


def test_lazy_layers_without_numbers_are_to_be_run_once() -> None:
    with pytest.raises(
        CheckpointError, match=r"was never run.*'0.weight', '0.bias', '1.running_mean'.*run the network once"
    ):
        open_origin(Request(source=lazy(), inputs=["x=FP32[N,3,L]"]), [])


def test_lazy_layers_of_a_network_in_memory_take_a_file_of_weights(tmp_path: Path) -> None:
    given, trained = lazy(), nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, affine=False)).eval()
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    origin = open_origin(Request(source=given, weights=tmp_path / "w.pt", inputs=["x=FP32[N,3,L]"]), [])
    x = torch.randn(2, 3, 8)
    assert np.array_equal(origin.run({"x": x.numpy()})["output"], trained(x).detach().numpy())
    assert nn.parameter.is_lazy(given[0].weight), "the network that was given is as it was"  # type: ignore[index]


class Remembers(nn.Module):
    """Keeps what it computed of its weights, in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.kept = {"doubled": [self.layer.weight * 2]}
        self.kept["itself"] = self.kept  # type: ignore[assignment]


def test_a_tensor_that_a_network_has_computed_is_copied_as_numbers() -> None:
    network = Remembers()
    copied = duplicate(network)
    (kept,), (given,) = copied.kept["doubled"], network.kept["doubled"]  # type: ignore[union-attr, index]
    assert torch.equal(kept, given)
    assert kept is not given
    assert given.grad_fn is not None


def test_an_orthogonal_weight_is_captured_as_its_value() -> None:
    """ONNX has no exponential of a matrix, which computes it."""
    torch.manual_seed(0)
    network = nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4)), nn.ReLU()).eval()
    origin = open_origin(Request(source=network, inputs=["x=FP32[N,4]"]), [])
    graph = origin.graph(origin.specs, {"N": 2}, 18)
    assert {node.op_type for node in graph.graph} <= {"Gemm", "MatMul", "Add", "Relu", "Transpose"}
    assert parametrize.is_parametrized(network[0]), "the network that was given is as it was"


class Observed(nn.Module):
    """What torch.ao.quantization.prepare() makes of a layer: an observer beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.activation_post_process = torch.ao.quantization.MinMaxObserver()


QUANTIZED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an observer": (Observed, "was prepared for torch's quantization ('activation_post_process' is a MinMaxObserver)"),
    "fake quantization": (
        lambda: nn.Sequential(torch.ao.quantization.FakeQuantize()),
        "was prepared for torch's quantization ('0' is a FakeQuantize)",
    ),
    "dynamic": (
        lambda: nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(3, 3)),
        "is quantized by torch ('0' is a Linear of torch.ao.nn.quantized.dynamic",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUANTIZED)
def test_torchs_quantized_networks_are_refused_by_the_module_and_with_what_to_do(name: str) -> None:
    make, reason = QUANTIZED[name]
    with pytest.raises(CaptureError, match=re.escape(reason)) as error:
        refuse_quantized(make())
    assert str(error.value).endswith("export it as it was before, and give --quantize int8")


def test_an_adder_that_can_be_quantized_is_a_layer_in_float32() -> None:
    refuse_quantized(nn.Sequential(torch.ao.nn.quantized.FloatFunctional(), torch.ao.quantization.QuantStub()))


def test_a_class_that_fails_says_what_it_was_called_with(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "sized.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, channels=8):\n"
        "        super().__init__()\n        self.layer = nn.Linear(channels, 4)\n"
    )
    said = r"failed when called.*It was called with channels='eight'; 'eight' is text, and channels is 8 by default$"
    with pytest.raises(SourceError, match=said):
        load_source(f"{tmp_path}/sized.py:Net", {"channels": "eight"})


class Windowed(nn.Module):
    """Keeps tensors as attributes, no buffers: filters are computed from them in each call, as in SincNet."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.rand(4, 1))
        self.times = torch.arange(1.0, 6.0).view(1, -1)
        self.windows = {"hamming": torch.hamming_window(5)}

    def forward(self, x: Tensor) -> Tensor:
        filters = torch.sin(torch.matmul(self.low, self.times)) * self.windows["hamming"]
        return nn.functional.conv1d(x, filters.view(4, 1, 5))


class InFloat32(nn.Module):
    """Computes in float32 by its own will, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = torch.rand(4, 1, 5)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv1d(x.float(), self.filters)


def test_a_network_with_tensors_as_attributes_has_a_reference_in_float64() -> None:
    network = NamedNetwork(Windowed().eval(), ["x"])
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 1, 9)).astype(np.float32)}
    run, name, notes = exact(network, inputs)
    assert (name, notes) == ("PyTorch, float64", ())
    assert run(inputs)["output"].dtype == np.float64
    assert network.network.times.dtype == torch.float32
    np.testing.assert_allclose(run(inputs)["output"], network.run(inputs)["output"], rtol=1e-5, atol=1e-6)


def test_a_network_that_runs_in_float64_as_it_is_keeps_its_attributes() -> None:
    network = NamedNetwork(InFloat32().eval(), ["x"])
    inputs = {"x": np.ones((2, 1, 9), np.float32)}
    run, name, _ = exact(network, inputs)
    assert name == "PyTorch, float64"
    assert run(inputs)["output"].dtype == np.float32


class Rounded(Windowed):
    """Keeps tensors as attributes, and rounds between its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) + 1000).float() - 1000


def test_a_network_with_attributes_that_rounds_by_itself_has_no_reference_in_float64() -> None:
    """Its captured graph, computed in float64, would be far from a reference that is in float32 in part."""
    network = NamedNetwork(Rounded().eval(), ["x"])
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 1, 9)).astype(np.float32)}
    run, name, (note,) = exact(network, inputs)
    assert name == "PyTorch, float32"
    assert note.startswith("the network does not run in float64")
    np.testing.assert_array_equal(run(inputs)["output"], network.run(inputs)["output"])


def test_a_copy_shows_no_warning_of_torch_about_its_own_parts() -> None:
    class Program(nn.Module):
        def __deepcopy__(self, memo: dict[int, object]) -> Program:
            warnings.warn("LeafSpec is deprecated", FutureWarning, stacklevel=1)
            return self

    with warnings.catch_warnings(action="error"):
        duplicate(Program())
