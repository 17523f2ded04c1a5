"""The ways to part an affine, what refuses them, which is taken, and how the work grows with the graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from tests.export.fold.graphs import (
    folded,
    folds_to,
    graph,
    left,
    net_of,
    norm,
    operators,
    same_function,
    same_in_onnxruntime,
    stays,
    weight_of,
    weights,
)

from normfold.export.fold.affine import Affine
from normfold.export.fold.engine.plan import Option, Refusals, options, planned, plans
from normfold.export.fold.engine.streams import Streams
from normfold.export.fold.net import Net, Op, Refused
from normfold.export.fold.ops.clamps import Clamp
from normfold.export.fold.ops.entrywise import Entrywise
from normfold.export.fold.ops.scaling import Scaled, Scaling

LENGTHS = ((2, 3, 12), (3, 3, 23))


def target_of(model: onnx.ModelProto) -> Scaling:
    return next(op for op in net_of(model).ops if isinstance(op, Scaling) and op.target)


def streams_around(target: Scaling) -> Streams:
    """Return the streams of the network that the target stands in."""
    ops: list[Op] = [target]
    for op in ops:
        for tensor in (*op.inputs, *op.outputs):
            ops += [o for o in (tensor.producer, *tensor.readers) if o is not None and o not in ops]
    return Streams(Net(ops, np.dtype(np.float32)))


def scaling(scale: list[float], shift: list[float]) -> Scaling:
    target = target_of(graph("(float[N,3,L] x) => (float[N,3,L] y) { y = BN(x, n) }", **norm("n", 3)))
    affine = Affine.along(1, 3, np.float64(scale), np.float64(shift))
    target.params = Scaled.like(affine, target.params.usual)
    return target


# --- A = F ∘ R ∘ G ----------------------------------------------------------------------------------------------------

AFFINES = [
    ([1.5, 2.0, 0.3], [1.0, -2.0, 0.5]),
    ([1.5, -2.0, 0.3], [1.0, -2.0, 0.5]),
    ([-1.5, -2.0, -0.3], [1.0, -2.0, 0.0]),
    ([1.5, 0.0, -0.3], [1.0, -2.0, 0.5]),
    ([0.0, 0.0, 0.0], [1.0, -2.0, 0.5]),
    ([1.5, -2.0, 0.3], [0.0, 0.0, 0.0]),
    ([1.0, 1.0, 1.0], [1.0, -2.0, 0.5]),
    ([1.0, -1.0, 1.0], [0.0, 0.0, 0.0]),
    ([1e-12, 1e12, -1.0], [1.0, -2.0, 0.5]),
]


@pytest.mark.parametrize(("scale", "shift"), AFFINES)
def test_every_option_is_the_affine_in_parts(scale: list[float], shift: list[float]) -> None:
    target = scaling(scale, shift)
    x = np.random.default_rng(0).standard_normal((2, 3, 5))
    want = target.params.scale * x + target.params.shift
    found = list(options(target))
    assert found
    for option in found:
        got = x
        for part in (option.back, option.stays, option.on):
            got = part.scale * got + part.shift
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12, err_msg=option.label)


@pytest.mark.parametrize(("scale", "shift"), AFFINES)
def test_what_goes_back_can_be_undone(scale: list[float], shift: list[float]) -> None:
    for option in options(scaling(scale, shift)):
        option.back.inverse()


@pytest.mark.parametrize(("scale", "shift"), AFFINES)
def test_no_option_comes_twice(scale: list[float], shift: list[float]) -> None:
    labels = [option.label for option in options(scaling(scale, shift))]
    assert max(Counter(labels).values()) == 1


def test_an_option_is_found_again_by_its_name() -> None:
    target = scaling([1.5, -2.0, 0.3], [1.0, -2.0, 0.5])
    for option in options(target):
        again = option.again(target)
        assert again.label == option.label
        assert again.back.equals(option.back)


def test_a_sign_stays_only_where_that_is_cheaper() -> None:
    assert any("the sign stays" in o.label for o in options(scaling([1.5, -2.0, 0.3], [1.0, -2.0, 0.5])))
    assert not any("the sign stays" in o.label for o in options(scaling([1.5, 2.0, 0.3], [1.0, -2.0, 0.5])))
    assert not any("the sign stays" in o.label for o in options(scaling([1.0, -1.0, 1.0], [0.0, 0.0, 0.0])))


# --- which way is taken -----------------------------------------------------------------------------------------------


def ways(model: onnx.ModelProto) -> list[str]:
    target = target_of(model)
    return [plan.option.label for plan in plans(target, Refusals(), streams_around(target))]


def test_between_two_convolutions_it_goes_back() -> None:
    text = "(float[N,3,L] x) => (float[N,5,L] y) { c = Conv(x, w) n = BN(c, n) y = Conv<pads=[1,1]>(n, v) }"
    assert ways(graph(text, w=weights(4, 3, 1), v=weights(5, 4, 3), **norm("n", 4)))[0] == "all back"


def test_behind_a_relu_it_goes_on() -> None:
    text = "(float[N,3,L] x) => (float[N,5,L] y) { c = Conv(x, w) r = Relu(c) n = BN(r, n) y = Conv(n, v) }"
    assert ways(graph(text, w=weights(4, 3, 1), v=weights(5, 4, 1), **norm("n", 4)))[0] == "all forward"


def test_a_plan_that_saves_nothing_is_not_taken() -> None:
    # On a shared input it could only become another affine.
    text = (
        "(float[N,3,L] x) => (float[N,3,L] y, float[N,3,L] z) { s = Sigmoid(x) n = BN(s, n) y = Relu(n) z = Tanh(s) }"
    )
    model = graph(text, **norm("n", 3))
    after, _ = folded(model)
    assert len(after.graph.node) <= 4
    same_function(model, after, *LENGTHS)


# --- what refuses -----------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_keep_their_numbers() -> None:
    target = target_of(graph("(float[N,3,L] x) => (float[N,3,L] y) { y = BN(x, n) }", **norm("n", 3)))
    back, on = list(options(target))[:2]
    with pytest.raises(Refused, match="'x' is an input of the network, so its numbers may not change"):
        planned(target, back, streams_around(target))
    with pytest.raises(Refused, match="'y' is an output of the network, so its numbers may not change"):
        planned(target, on, streams_around(target))


def test_a_scale_that_is_nearly_0_cannot_go_back() -> None:
    target = scaling([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    tiny = Affine.along(1, 3, np.float64([1e-310, 1, 1]), np.zeros(3))
    with pytest.raises(Refused, match=r"'BatchNormalization_0' \(.*\) scales a channel by 0 or nearly so"):
        planned(target, Option(tiny, Affine.identity(3), Affine.identity(3)), streams_around(target))


def option_of(target: Scaling, label: str) -> Option:
    return next(option for option in options(target) if option.label == label)


def test_a_tensor_cannot_have_two_scales() -> None:
    # The sum wants its branches scaled alike, but n is to be c, scaled.
    text = "(float[N,3,L] x) => (float[N,4,L] y) { c = Conv(x, w) n = BN(c, n) s = Add(c, n) y = Conv(s, v) }"
    model = graph(text, w=weights(4, 3, 1), v=weights(4, 4, 1), **norm("n", 4))
    target = target_of(model)
    with pytest.raises(Refused, match="would need two different scales or shifts at once"):
        planned(target, option_of(target, "all back"), streams_around(target))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_a_change_is_not_followed_through_the_whole_network() -> None:
    layer, _ = STACKS["residual"]
    model = layers(30, layer, "z = BN(u@, o) y = Sigmoid(z)", **norm("n", 4), **norm("o", 4, gamma="positive"))
    target = next(op for op in reversed(net_of(model).ops) if isinstance(op, Scaling) and op.target)
    with pytest.raises(Refused, match="more than 48 operators around it would have to change"):
        planned(target, option_of(target, "all back"), streams_around(target))


def test_a_mean_far_from_0_is_taken_off_where_it_is() -> None:
    # r is 1000 ± 0.1: readers that took s r and t apart would subtract numbers 10 000 times their difference.
    text = "(float[N,3,L] x) => (float[N,5,L] y) { c = Sigmoid(x) n = BN(c, n) y = Conv<pads=[1,1]>(n, v) }"
    given = norm("n", 3, gamma=[1, 1, 1], beta=[0] * 3, mean=[1000] * 3, var=[0.01] * 3)
    target = target_of(graph(text, v=weights(5, 3, 3), **given))
    with pytest.raises(
        Refused, match="subtracts a mean much larger than its deviation, and readers that took this would lose digits"
    ):
        planned(target, option_of(target, "all forward"), streams_around(target))


@pytest.mark.parametrize("source", ["c", "p"])
def test_a_shift_is_large_or_small_against_what_the_scale_before_it_leaves(source: str) -> None:
    # m is c times 1e-6 and a shift of 0.4 then: e, which reads c, would have to find c in the last digits of 0.4.
    text = """(float[N,3,L] x) => (float[N,4,L] y) {
        c = Conv(x, w)  p = Slice(c, zero, far, two)  m = Mul(SOURCE, g)  a = Add(m, b)  d = Relu(a)  s = Sigmoid(d)  e = Conv(c, v)  y = Add(s, e) }"""
    given = {"g": np.full((4, 1), 1e-6, np.float32), "b": np.full((4, 1), 0.4, np.float32)}
    given |= {"zero": np.array([0]), "far": np.array([99]), "two": np.array([2])}
    model = graph(text.replace("SOURCE", source), w=weights(4, 3, 1), v=weights(4, 4, 1), **given)
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_a_shift_is_judged_by_the_batchnorm_before_where_its_own_statistics_say_more() -> None:
    # Its statistics say that m is about 1, and the BatchNorm before makes it about 1e-6.
    text = """(float[N,3,L] x) => (float[N,4,L] y) {
        c = Conv(x, w)  m = BN(c, m)  n = BN(m, n)  d = Relu(n)  s = Sigmoid(d)  e = Conv(c, v)  y = Add(s, e) }"""
    tiny = norm("m", 4, gamma=[1e-6] * 4, beta=[0] * 4, mean=[0] * 4)
    model = graph(text, w=weights(4, 3, 1), v=weights(4, 4, 1), **tiny, **norm("n", 4))
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_a_shift_that_came_from_the_affine_before_is_judged_by_what_that_one_read() -> None:
    # n goes on into m, which then takes 1e-6 c + 0.4; e reads c and would lose it beside 0.4.
    text = """(float[N,3,L] x) => (float[N,4,L] y) {
        c = Conv(x, w)  n = BN(c, n)  m = Mul(n, g)  a = Add(m, z)  s = Conv(a, u)
        e = Conv(c, v)  y = Add(s, e) }"""
    tiny = norm("n", 4, gamma=[1e-6] * 4, beta=[0.4] * 4) | {"z": np.zeros((4, 1), np.float32)}
    model = graph(text, w=weights(4, 3, 1), u=weights(4, 4, 1, seed=1), v=weights(4, 4, 1), g=weights(4, 1), **tiny)
    after, report = folded(model)
    assert report.affines_after == 0
    same_function(model, after, *LENGTHS)


def test_a_large_shift_is_not_undone_where_others_read_the_tensor() -> None:
    # mean 0, deviation 1 and a shift of 1000: (u + 1000) - 1000 would lose three digits of u.
    text = """(float[N,3,L] x) => (float[N,4,L] y) {
        c = Conv(x, w)  n = BN(c, n)  a = Sigmoid(n)  b = Conv(c, v)  y = Add(a, b) }"""
    given = norm("n", 4, gamma=[1, 1, 1, 1], beta=[1000] * 4, mean=[0] * 4, var=[1] * 4)
    model = graph(text, w=weights(4, 3, 1), v=weights(4, 4, 1), **given)
    target = target_of(model)
    refusals = Refusals()
    list(plans(target, refusals, streams_around(target)))
    sentence = "'c' has other readers, and undoing so large a shift there would cost its last digits"
    assert sentence in " ".join(refusals.values())
    after, _ = folded(model)
    same_function(model, after, *LENGTHS)


def test_an_unknown_rank_refuses() -> None:
    text = "(float[N,3,L] x) => (float[N,4,L] y) { c = Conv(x, w) y = BN(c, n) }"
    target = target_of(graph(text, w=weights(4, 3, 1), **norm("n", 4)))
    target.inputs[0].shape = None
    with pytest.raises(Refused, match="the rank of 'c' is not known"):
        target.inputs[0].size(1)


def test_a_dynamic_length_refuses_where_its_number_is_needed() -> None:
    target = target_of(graph("(float[N,3,L] x) => (float[N,3,L] y) { y = BN(x, n) }", **norm("n", 3)))
    with pytest.raises(Refused, match="the length of axis 2 of 'x' is dynamic"):
        target.inputs[0].size(2)


def test_a_shift_that_needs_two_pads_is_not_worth_it() -> None:
    text = """(float[N,3,L] x) => (float[N,5,L] y) {
        a = Add(x, t)  b = Conv<pads=[1,1]>(a, v)  c = Conv<pads=[2,2]>(a, u)  y = Add(b, c) }"""
    model = graph(text, v=weights(5, 3, 3), u=weights(5, 3, 5), t=weights(3, 1))
    after, report = folded(model)
    assert operators(after).count("Pad") <= 1
    assert len(after.graph.node) <= len(model.graph.node)
    same_function(model, after, *LENGTHS)
    if left(report):
        assert "carrying the shift past the zero padding would cost as much as the operation it saves" in str(
            left(report)
        )


def test_mean_and_deviation_of_ordinary_size_are_no_reason_to_refuse() -> None:
    text = "(float[N,3,L] x) => (float[N,5,L] y) { c = Conv(x, w) r = Relu(c) n = BN(r, n) y = Conv<pads=[1,1]>(n, v) }"
    given = norm("n", 4, mean=[0.5, 1, 2, 0.1], var=[0.1, 0.5, 2, 0.01])
    folds_to(graph(text, w=weights(4, 3, 1), v=weights(5, 4, 3), **given), "Conv Relu Conv", *LENGTHS)


def test_an_operator_that_nothing_passes_says_so_in_plain_words() -> None:
    text = """(float[N,3,L] x) => (float[N,3,L] y, float[N,3,L] z) {
        y = Softmax<axis=1>(x)  n = BN(y, n)  z = LpNormalization(n) }"""
    sentence = "no rule takes a per-channel scale or shift through 'LpNormalization_2' (LpNormalization)"
    stays(graph(text, **norm("n", 3)), sentence)


# --- the work grows as the graph --------------------------------------------------------------------------------------


def layers(count: int, layer: str, tail: str, **arrays: np.ndarray) -> onnx.ModelProto:
    nodes, given = "u0 = Conv(x, w)", {"w": weights(4, 3, 1), "k": weights(4, 4, 3)}
    for i in range(count):
        nodes += " " + layer.replace("#", str(i)).replace("@", str(i + 1))
    return graph(
        f"(float[N,3,L] x) => (float[N,4,L] y) {{ {nodes} {tail.replace('@', str(count))} }}", **given, **arrays
    )


STACKS = {
    "plain": ("c# = Conv<pads=[1,1]>(u#, k) n# = BN(c#, n) u@ = Relu(n#)", "y = Identity(u@)"),
    "book": ("c# = Conv<pads=[1,1]>(u#, k) r# = Relu(c#) u@ = BN(r#, n)", "y = Conv<pads=[1,1]>(u@, k)"),
    "residual": ("c# = Conv<pads=[1,1]>(u#, k) n# = BN(c#, n) r# = Relu(n#) u@ = Add(u#, r#)", "y = Identity(u@)"),
    "pre-activation": (
        "n# = BN(u#, n) r# = Relu(n#) c# = Conv<pads=[1,1]>(r#, k) u@ = Add(u#, c#)",
        "y = Identity(u@)",
    ),
}


@pytest.mark.parametrize("name", STACKS)
def test_four_times_the_layers_are_four_times_the_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counting(method: Any) -> Any:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return method(*args)

        return call

    kinds = {*Op.__subclasses__(), *Entrywise.__subclasses__()}
    assert Clamp in kinds
    for kind in kinds:
        for method in ("spread", "add_channel", "constants"):
            if method in vars(kind):
                monkeypatch.setattr(kind, method, counting(vars(kind)[method]))
    work = []
    for count in (20, 80):
        calls = 0
        _, report = folded(layers(count, *STACKS[name], **norm("n", 4, gamma="positive")))
        assert len(report.folds) == count
        work.append(calls)
    assert work[1] <= 6 * work[0], work


def test_a_graph_of_1000_nodes_folds_whole() -> None:
    model = layers(333, *STACKS["book"], **norm("n", 4))
    after, report = folded(model)
    assert len(model.graph.node) > 1000
    assert report.affines_after == 0
    assert operators(after).count("Relu") == 333
    assert weight_of(after).shape[0] in (4, 5)


def test_a_large_shift_is_not_undone_in_a_sum_with_a_slice_of_the_same_tensor() -> None:
    # c would be stored as 1e-6 c + 0.4 for both slices; the branch of the sum would take 0.4 off, and c's digits with it.
    text = """(float[N,3,L] x) => (float[N,5,M] y) {
        c = Conv(x, w)  p = Slice(c, one, end, axis)  q = Slice(c, one, end, axis)  n = BN(q, n)
        d = Conv(n, u)  s = Add(d, p)  y = Conv(s, v) }"""
    held = {"one": np.array([1]), "end": np.array([1000]), "axis": np.array([2])}
    tiny = norm("n", 4, gamma=[1e-6] * 4, beta=[0.4] * 4, mean=[0.0] * 4, var=[1.0] * 4)
    model = graph(text, w=weights(4, 3, 1), u=weights(4, 4, 1, seed=1), v=weights(5, 4, 3), **held, **tiny)
    after, _ = folded(model)
    same_in_onnxruntime(model, after, (2, 3, 13), (1, 3, 24))


def test_a_large_mean_goes_back_though_another_channel_is_a_constant() -> None:
    # Where gamma is 0 the shift goes forward; nothing is subtracted from it.
    text = """(float[N,3,L] x) => (float[N,4,L] y, float[N,2,L] z) {
        c = Conv(x, w, b)  n = BN(c, n)  r = Relu(n)  y = Conv(r, v)  z = Conv(c, u) }"""
    far = norm("n", 4, gamma=[0.0, 1.0, 1.0, 1.0], mean=[3.0] * 4, var=[0.04] * 4)
    held = {"w": weights(4, 3, 1), "b": np.full(4, 3, np.float32), "v": weights(4, 4, 1), "u": weights(2, 4, 1)}
    folds_to(graph(text, **held, **far), "Conv Relu Conv Conv", (2, 3, 13), (1, 3, 24))
