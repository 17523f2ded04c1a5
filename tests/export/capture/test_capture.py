from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.export.capture.capture import capture
from normfold.export.capture.capture_errors import fixed_dimension, refuse_training_modules
from normfold.export.capture.inner_ones import without_inner_ones
from normfold.export.capture.named_network import NamedNetwork, named_outputs
from normfold.export.capture.tidy import MODULE
from normfold.export.errors import CaptureError, InputSpecError
from normfold.export.graphs.runtime import Runtime
from normfold.export.graphs.serialize import to_bytes
from normfold.export.inputs.specs import parse_inputs


class Net(nn.Module):
    """Convolution, ReLU, BatchNorm, and then ``tail``."""

    def __init__(self, tail=lambda x: x, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.BatchNorm1d(8))
        self.encoder[2].running_mean.normal_()
        self.encoder[2].running_var.uniform_(0.5, 2)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.encoder(x))


def captured(network: nn.Module, inputs: str = "x=FP32[N,3,L]", opset: int = 18, **sizes: int) -> ir.Model:
    specs = parse_inputs(inputs.split(";"))
    network = NamedNetwork(network.eval(), [s.name for s in specs])
    return capture(network, specs, {"N": 2, "L": 18, **sizes}, opset)


def agrees(network: nn.Module, model: ir.Model, *shapes: tuple[int, ...]) -> None:
    """Check that the graph computes the same as PyTorch, to float32 precision, at each shape."""
    runtime = Runtime(to_bytes(model), optimised=False)
    for shape in shapes:
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        with torch.no_grad():
            expected = [t.numpy() for _, t in named_outputs(network(torch.from_numpy(x)))]
        got = list(runtime.run({"x": x}).values())
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2**-19 * max(1, np.abs(b).max()))


def operators(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def test_every_batchnorm_stays_in_the_captured_graph_and_says_which_module_it_was() -> None:
    network = Net(nn.Sequential(nn.Conv1d(8, 4, 1, bias=False), nn.BatchNorm1d(4)))
    model = captured(network)
    assert operators(model) == ["Conv", "Relu", "BatchNormalization", "Conv", "BatchNormalization"]
    modules = [n.metadata_props.get(MODULE) for n in model.graph]
    assert modules == ["encoder.0", "encoder.1", "encoder.2", "tail.0", "tail.1"]
    assert "encoder.2.running_mean" in model.graph.initializers
    agrees(network, model, (1, 3, 3), (5, 3, 40))


POOLS: tuple[Callable[[Tensor], Any], ...] = (
    nn.MaxPool1d(2),
    nn.MaxPool1d(3, stride=2, padding=1, ceil_mode=True),
    nn.MaxPool1d(3, dilation=2),
    lambda x: F.max_pool1d(x, 2),
    lambda x: F.max_pool1d(x, (3,), (1,), (1,)),
    lambda x: torch.max_pool1d(x, 2, stride=1),
    nn.AdaptiveMaxPool1d(1),
    nn.AvgPool1d(2),
    nn.AdaptiveAvgPool1d(1),
    lambda x: F.max_pool1d(x, 2, return_indices=True),
)


def test_a_length_that_is_pooled_stays_dynamic() -> None:
    network = Net(lambda x: tuple(pool(x) for pool in POOLS)).eval()
    model = captured(network)
    agrees(network, model, (2, 3, 18), (1, 3, 9), (4, 3, 41))
    pooled = [n for n in model.graph if n.op_type == "MaxPool"]
    assert len(pooled) >= 7
    makers = [n.inputs[0].producer() for n in pooled if n.inputs[0] is not None]
    assert {n.op_type for n in makers if n is not None} == {"BatchNormalization"}, "no detour through two dimensions"


def pieces(x: Tensor) -> tuple[Tensor, ...]:
    """Every way to pool a whole length, or to cut it into a fixed number of pieces."""
    high = x[:, :, None]
    return (
        F.avg_pool1d(x, kernel_size=x.size()[2:]).squeeze(-1),
        F.max_pool1d(x, x.shape[-1]),
        F.avg_pool2d(high, (1, x.shape[-1])),
        F.max_pool2d(x.unflatten(1, (2, 4)), (1, x.shape[-1]), (1, 1)),
        nn.AdaptiveAvgPool1d(3)(x),
        nn.AdaptiveMaxPool2d((None, 2))(high),
        nn.AdaptiveAvgPool2d((3, 2))(x.unflatten(1, (2, 4))),
        *torch.tensor_split(x, 3, dim=-1),
        *x.chunk(2, -1),
        *torch.chunk(x, 1, 0),
    )


def test_a_length_that_is_pooled_whole_or_cut_into_a_fixed_number_of_pieces_stays_dynamic() -> None:
    network = Net(pieces).eval()
    agrees(network, captured(network), (2, 3, 18), (1, 3, 5), (3, 3, 19), (4, 3, 43))


def named(x: Tensor) -> tuple[Tensor, ...]:
    """Calls that the capture replaces, with named arguments."""
    return (
        F.adaptive_max_pool1d(input=x, output_size=1),
        F.adaptive_max_pool1d(x, output_size=1),
        F.adaptive_avg_pool1d(input=x, output_size=2),
        F.max_pool1d(input=x, kernel_size=x.shape[-1]),
        *torch.tensor_split(x, sections=3, dim=-1),
        *torch.chunk(input=x, chunks=2, dim=-1),
        torch.add(input=x, other=x),
        torch.add(x, other=x),
        torch.cat(tensors=(x, x), dim=1),
    )


def test_calls_with_named_arguments_are_captured_like_others() -> None:
    network = Net(named).eval()
    agrees(network, captured(network), (2, 3, 18), (3, 3, 19), (4, 3, 43))


def test_a_pool_to_the_length_of_another_value_is_captured() -> None:
    network = Net(lambda x: F.adaptive_avg_pool1d(x, F.max_pool1d(x, 2).shape[-1])).eval()
    agrees(network, captured(network, L=34), (2, 3, 34), (3, 3, 50))


def test_a_u_net_that_halves_and_doubles_keeps_its_length_dynamic() -> None:
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv1d(3, 4, 3, padding=1), nn.ConvTranspose1d(4, 4, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.down(x)
            return torch.cat([x, self.up(F.max_pool1d(x, 2))], 1)

    network = UNet().eval()
    agrees(network, captured(network), (1, 3, 2), (2, 3, 64))


def test_dimensions_carry_the_persons_names_into_the_graph() -> None:
    model = captured(Net(), "x=FP32[batch,3,time]", batch=2, time=9)
    assert str(model.graph.inputs[0].shape) == "[batch,3,time]"
    assert str(model.graph.outputs[0].shape) == "[batch,8,time - 2]"


def test_no_trace_of_where_it_was_made_is_left() -> None:
    content = to_bytes(captured(Net(nn.MaxPool1d(2))))
    for leak in (b"stack", b"torch.", b"File", b"forward", b"tests", str(Path.home()).encode()):
        assert leak not in content


@pytest.mark.parametrize("opset", [20, 21])
def test_other_opsets_are_written_on_request(opset: int) -> None:
    network = Net(nn.MaxPool1d(2)).eval()
    model = captured(network, opset=opset)
    assert model.opset_imports[""] == opset
    agrees(network, model, (1, 3, 9))


def test_tuples_dicts_and_dataclasses_become_named_outputs() -> None:
    network = Net(lambda x: {"mean": x.mean(-1), "parts": (x, x.amax(-1)), "nothing": None}).eval()
    model = captured(network)
    assert [o.name for o in model.graph.outputs] == ["mean", "parts_0", "parts_1"]
    agrees(network, model, (3, 3, 12))
    assert [n for n, _ in named_outputs((torch.ones(1), torch.ones(1)))] == ["output_0", "output_1"]
    with pytest.raises(CaptureError, match="returns a value of type int in 'a'"):
        named_outputs({"a": 3})
    for odd, said in (
        (torch.ones(2, dtype=torch.complex64), r"complex numbers, which no server sends: return torch.view_as_real"),
        (torch.ones(2).to_sparse(), "a sparse tensor, which no graph holds"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "a quantised tensor, which no graph holds"),
        (torch.ones(2, dtype=torch.bfloat16), r"bfloat16, which no server sends: return y.float\(\) as 'a'"),
    ):
        with pytest.raises(CaptureError, match=said):
            named_outputs({"a": odd})


def test_several_inputs_are_given_by_name_whatever_their_order() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 3)

        def forward(self, tokens: Tensor, scale: Tensor, unused: int = 2) -> Tensor:
            return self.embed(tokens) * scale[:, None, None] * unused

    network = Two().eval()
    model = captured(network, "scale=FP32[N];tokens=INT64[N,L]:0..9")
    assert [i.name for i in model.graph.inputs] == ["scale", "tokens"]
    inputs = {"scale": np.float32([2, 3]), "tokens": np.int64([[1, 2, 3], [4, 5, 9]])}
    expected = network(torch.from_numpy(inputs["tokens"]), torch.from_numpy(inputs["scale"])).detach().numpy()
    (got,) = Runtime(to_bytes(model), optimised=False).run(inputs).values()
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(InputSpecError, match="has no input 'token'; did you mean 'tokens'"):
        NamedNetwork(network, ["token", "scale"])
    with pytest.raises(InputSpecError, match="takes 2 inputs, but the description has 1:"):
        NamedNetwork(network, ["x"])


def test_an_output_that_is_an_input_or_comes_twice_gets_a_name_of_its_own() -> None:
    network = Net()
    network.forward = lambda x: (x, x + 1, x)  # type: ignore[method-assign]
    model = captured(network)
    assert [o.name for o in model.graph.outputs] == ["output_0", "output_1", "output_2"]
    agrees(network, model, (1, 3, 4))


def fixed_view(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], 8 * 16)


def fixed_assert(x: Tensor) -> Tensor:
    assert x.shape[2] == 16
    return x


def fixed_number(x: Tensor) -> Tensor:
    return x * int(x.shape[2])


def test_a_batch_that_is_missing_is_offered() -> None:
    specs = parse_inputs(["x=FP32[2,L:8..]"])
    assert fixed_dimension("L", specs, 8, "", ValueError()).endswith("add it: --input 'x=FP32[N,2,L]'")
    one = parse_inputs(["x=FP32[1,L]"])
    assert "batch" not in fixed_dimension("L", one, 8, "", ValueError())


@pytest.mark.parametrize(
    "tail", [fixed_view, fixed_assert, fixed_number, nn.Sequential(nn.Flatten(), nn.Linear(128, 2))]
)
def test_a_length_that_the_network_fixes_is_named_with_the_users_line(tail) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CaptureError) as caught:
        captured(Net(tail))
    message = str(caught.value)
    assert "dimension 'L' (axis 2 of 'x') cannot stay dynamic" in message
    assert "test_capture.py:" in message
    assert "--input 'x=FP32[N,3,18]'" in message
    if not isinstance(tail, nn.Module):
        assert f"in {tail.__name__}" in message
    network = Net(tail).eval()
    agrees(network, captured(network, "x=FP32[N,3,18]"), (1, 3, 18), (4, 3, 18))


def branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def branch_on_number(x: Tensor) -> Tensor:
    return x if float(x.sum()) > 0 else -x


def scaled_by_float(x: Tensor) -> Tensor:
    return x / float(x.std())


def scaled_by_item(x: Tensor) -> Tensor:
    return x / max(x.std().item(), 1e-6)


def cut_by_int(x: Tensor) -> Tensor:
    end = int(x.argmax())
    return x[:, :, : end + 5]


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() * 2)


def random_dropout(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5)


def batch_statistics(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def noise(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def unsupported(x: Tensor) -> Tensor:
    return torch.special.bessel_j0(x)


def unsupported_inside(x: Tensor) -> Tensor:
    return torch.linalg.svdvals(x)


def packed(x: Tensor) -> Tensor:
    sequence = nn.utils.rnn.pack_padded_sequence(x, torch.full((x.shape[0],), 3), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(nn.GRU(16, 2, batch_first=True)(sequence)[0])[0]


def mixed(x: Tensor) -> Tensor:
    return torch.clamp(x, 50, x.shape[-1] / 2)


def attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x)


def loss(x: Tensor) -> Tensor:
    targets, lengths = torch.ones(x.shape[0], 2, dtype=torch.long), torch.full((x.shape[0],), 2)
    return F.ctc_loss(x.permute(2, 0, 1), targets, torch.full((x.shape[0],), 16), lengths)


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (loss, "torch cannot capture the operator aten._ctc_loss.Tensor, which the network uses at test_capture.py"),
        (packed, "packed sequences cannot be captured"),
        (packed, "reads each sequence reversed by gather()"),
        (mixed, "a size that is computed from the input are mixed"),
        (branch, "decides by the values of its input"),
        (branch_on_number, "decides by the values of its input"),
        (scaled_by_float, "; leave it a tensor: write the line without float()"),
        (scaled_by_item, "write the line without item(); in the place of max() use torch.maximum or .clamp()"),
        (cut_by_int, "a size or the end of a slice cannot depend on the values; use a mask"),
        (through_numpy, "leaves torch for NumPy"),
        (random_dropout, "training=self.training"),
        (batch_statistics, "normalises by the statistics of its batch"),
        (noise, "draws random numbers"),
        (unsupported, "no counterpart for the operator"),
        (unsupported_inside, "no counterpart for the operator aten._linalg_svd"),
    ],
)
def test_what_torch_cannot_capture_is_said_in_a_persons_terms_with_their_line(tail, expected: str, capfd) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CaptureError) as caught:
        captured(Net(tail))
    message = str(caught.value)
    assert expected in message
    assert "test_capture.py:" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


class TrainsTwice(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.25)
        x = F.batch_norm(x, None, None, training=True)
        return F.dropout(x, 0.75)


def test_all_lines_that_train_are_named_in_one_message() -> None:
    with pytest.raises(CaptureError) as caught:
        captured(TrainsTwice(nn.Identity()))
    dropout, statistics = str(caught.value).split(". Moreover, ")
    assert "in forward: `x = F.dropout(x, 0.25)`, test_capture.py:" in dropout
    assert "in forward: `return F.dropout(x, 0.75)`: F.dropout trains by default" in dropout
    assert "`x = F.batch_norm(x, None, None, training=True)`; pass" in statistics


def test_attention_over_three_axes_is_told_which_axis_is_missing() -> None:
    with pytest.raises(CaptureError, match=r"tensors of 4 axes only .* add the axis of heads with q\[:, None\]"):
        captured(Net(attention))


def test_a_weight_that_forward_goes_on_changing_through_data_is_named_as_the_reason() -> None:
    class Shrinking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1))

        def forward(self, x: Tensor) -> Tensor:
            self.scale.data.mul_(1 - 1e-6)
            return x * self.scale

    with pytest.raises(CaptureError, match=r"writes a tensor through \.data while it runs") as caught:
        captured(Shrinking().eval())
    assert "fake tensor" not in str(caught.value)


def test_an_input_changed_in_place_is_read_before_the_change_and_left_alone() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return x * 2

    agrees(lambda x: (x + 1) * 2, captured(InPlace()), (1, 3, 4))
    x = np.ones((1, 3, 4), np.float32)
    NamedNetwork(InPlace(), ["x"]).run({"x": x})
    assert (x == 1).all()


def test_modules_that_train_after_eval_are_refused_with_the_reason() -> None:
    class Stubborn(nn.Dropout):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(True)

    class Deaf(nn.Sequential):
        def eval(self) -> nn.Module:
            return self

        def train(self, mode: bool = True) -> nn.Module:
            return self

    overrides = "stays in training mode after eval\\(\\): the class {} overrides train\\(\\)"
    with pytest.raises(CaptureError, match="'1' \\(Stubborn\\) " + overrides.format("Stubborn")):
        refuse_training_modules(nn.Sequential(nn.ReLU(), Stubborn()).eval())
    with pytest.raises(CaptureError, match="'0' \\(Deaf\\) " + overrides.format("Deaf")):
        refuse_training_modules(nn.Sequential(Deaf(nn.ReLU())).eval())
    deaf = Deaf(nn.ReLU())
    deaf.training = False
    with pytest.raises(CaptureError, match="'0.0' \\(ReLU\\) " + overrides.format("Deaf")):
        refuse_training_modules(nn.Sequential(deaf).eval())
    with pytest.raises(CaptureError, match="keeps no running statistics"):
        refuse_training_modules(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)).eval())
    several = nn.Sequential(*(nn.BatchNorm1d(3, track_running_stats=False) for _ in range(9)))
    with pytest.raises(CaptureError, match=r"The same is true of '1', '2', '3', '4', '5' and 3 more$"):
        refuse_training_modules(several.eval())
    refuse_training_modules(nn.Sequential(nn.BatchNorm1d(3), nn.InstanceNorm1d(3), nn.Dropout()).eval())


def test_two_dimensions_that_must_be_equal_are_named() -> None:
    class Add(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    with pytest.raises(CaptureError, match="'L' and 'M' to be equal"):
        captured(Add(), "a=FP32[N,L];b=FP32[N,M]", M=18)
    captured(Add(), "a=FP32[N,L];b=FP32[N,L]")


@pytest.mark.parametrize(
    ("kind", "options", "operator"),
    [
        (nn.LSTM, {"batch_first": True}, "LSTM"),
        (nn.LSTM, {"bidirectional": True, "num_layers": 2, "batch_first": True}, "LSTM"),
        (nn.GRU, {"bidirectional": True}, "GRU"),
        (nn.RNN, {"batch_first": True}, "RNN"),
        (nn.RNN, {"bidirectional": True, "num_layers": 2, "batch_first": True}, "RNN"),
        (nn.RNN, {"nonlinearity": "relu", "bias": False, "num_layers": 2}, "RNN"),
    ],
)
def test_a_recurrent_layer_stays_one_node_and_its_length_dynamic(kind, options, operator: str) -> None:  # type: ignore[no-untyped-def]
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(8, 5, **options)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.permute(0, 2, 1) if options.get("batch_first") else x.permute(2, 0, 1))[0]

    network = Net(Recurrent()).eval()
    model = captured(network)
    assert operators(model).count(operator) == options.get("num_layers", 1)
    agrees(network, model, (1, 3, 4), (3, 3, 30))


def test_an_lstm_with_a_projection_is_refused_by_its_reason() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 5, proj_size=2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.lstm(x)[0]
            return y

    with pytest.raises(CaptureError, match="ONNX's LSTM has no projection"):
        capture(NamedNetwork(Projected().eval(), ["x"]), parse_inputs(["x=FP32[N,L,3]"]), {"N": 2, "L": 8})


def test_a_length_that_leaves_one_position_inside_does_not_fix_the_dimension() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 4, 18), nn.Conv1d(3, 4, 18)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.a(x)) * torch.sigmoid(self.b(x))

    network = Gated().eval()
    for inputs in ("x=FP32[N,3,L]", "x=FP32[N,3,L:18..40:2]"):
        agrees(network, captured(network, inputs, L=18), (2, 3, 18), (1, 3, 38))


def test_a_recurrent_layer_that_reads_one_step_where_it_is_traced_takes_every_length() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gru = nn.Conv1d(3, 4, 18), nn.GRU(4, 5, num_layers=2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            steps: Tensor = self.gru(self.first(x).transpose(1, 2))[0]
            return steps

    network = Recurrent().eval()
    agrees(network, captured(network, L=18), (2, 3, 18), (1, 3, 25))


def test_a_limit_on_the_weights_in_forward_is_applied_once_and_captured() -> None:
    class Limited(nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
            self.bias.data.clamp_(min=0)  # type: ignore[union-attr]
            return super().forward(x)

    network = Net(Limited(8, 4, 3)).eval()
    weight = network.tail.weight
    given = weight.detach().clone()
    model = captured(network)
    assert torch.equal(weight, given), "the network is given back as it was"
    agrees(network, model, (2, 3, 18), (1, 3, 31))


class Writing(nn.Module):
    """Writes .data of a weight, of a buffer and of an answer, as ``write(module, answer)`` says."""

    def __init__(self, write: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.weight, self.write = nn.Parameter(torch.linspace(0.1, 1, 3)[:, None]), write
        self.register_buffer("most", torch.linspace(0.1, 1, 3)[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.weight
        self.write(self, y)
        return y * self.most


def test_a_limit_on_a_buffer_that_is_not_saved_is_captured_too() -> None:
    network = Writing(lambda module, y: module.most.data.clamp_(max=0.5))
    model = captured(network)
    assert network.most.max() == 1
    agrees(network, model, (2, 3, 18), (1, 3, 31))


def test_what_is_written_into_the_data_of_an_answer_is_captured_and_not_left_out() -> None:
    network = Writing(lambda module, y: y.data.clamp_(max=0.1))
    agrees(network, captured(network), (2, 3, 18), (1, 3, 31))

    def assigned(module: nn.Module, y: Tensor) -> None:
        y.data = y.data.clamp(max=0.1)

    with pytest.raises(CaptureError, match=r"assigns \.data of a tensor that is no weight or buffer"):
        captured(Writing(assigned))


def test_a_fixed_dimension_of_a_network_that_limits_its_weights_is_named() -> None:
    class Fixed(Writing):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).reshape(2, 3, -1)

    with pytest.raises(CaptureError, match=r"dimension 'N'.*cannot stay dynamic"):
        captured(Fixed(lambda module, y: module.most.data.clamp_(max=0.5)))


def larger(network: nn.Module, length: int) -> int:
    """The length that a network is traced at instead of ``length``."""
    named, specs = NamedNetwork(network.eval(), ["x"]), parse_inputs(["x=FP32[N,3,L]"])
    return without_inner_ones(named, lambda s: (torch.ones(2, 3, s["L"]),), specs, {"N": 2, "L": length})["L"]


def test_what_a_network_keeps_where_larger_sizes_are_tried_does_not_stay() -> None:
    class Cached(nn.Conv1d):
        table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            if self.table is None or len(self.table) < y.shape[-1]:
                self.table = torch.arange(float(y.shape[-1]))
            return y + self.table[: y.shape[-1]]

    network = Cached(3, 4, 3)
    with torch.no_grad():
        assert larger(network, 3) == 6
    assert network.table is None


def test_a_network_in_which_no_size_is_1_runs_once_for_that_check() -> None:
    lengths: list[int] = []
    network = Writing(lambda module, y: lengths.append(y.shape[-1]))
    network.weight, network.most = nn.Parameter(torch.ones(3, 18)), torch.ones(3, 18)
    assert larger(network, 18) == 18
    assert lengths == [18]


def test_a_network_that_takes_another_path_at_the_larger_size_is_traced_where_it_was_asked_to_be() -> None:
    class Halving(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            while x.shape[-1] > 1:
                x = F.max_pool1d(x * 2, 2)
            return x

    agrees(Halving().eval(), captured(Halving(), "x=FP32[N,3,L:16..31]", L=16), (2, 3, 16), (1, 3, 16))
