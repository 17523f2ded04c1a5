"""A network that takes another path at some sizes is published for a range without them, or refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import normfold
from normfold.export.inputs.guards import Guard
from normfold.export.inputs.specs import dimensions, parse_input
from normfold.export.proof import paths_at


class Net(nn.Module):
    """A small network whose last step is ``way(x, y)`` of its input and its answer."""

    def __init__(self, way: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.way(x, self.norm(torch.relu(self.conv(x))))
        return answer


def exported(way: Any, folder: Path, text: str = "x=FP32[N,4,L]") -> tuple[Net, Any]:
    """The network and the report of its export."""
    torch.manual_seed(0)
    network = Net(way).eval()
    return network, normfold.export_network(network, inputs=text, repository=folder, name="m", form="folded", version=1)


def tripled(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 3 if x.shape[-1] >= 1000 else y


def cut(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y[..., :1000] * 3 if y.shape[-1] // 2 >= 500 else y


def only_at(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 3 if x.shape[-1] == 777 else y


def refusing(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if x.shape[-1] > 300:
        raise ValueError("too long")
    return y


@pytest.mark.parametrize(("way", "high"), [(tripled, 999), (cut, 999), (only_at, 776), (refusing, 300)])
def test_the_range_ends_where_another_path_begins(tmp_path: Path, way: Any, high: int) -> None:
    network, report = exported(way, tmp_path)
    assert f"L from 1 to {high}" in str(report.limits)
    (note,) = (note for note in report.notes if f"L is up to {high}, while" in note)
    assert note.endswith(f"; to export the other path, declare L:{high + 1}.. in --input") == (way is not refusing)
    x = np.random.default_rng(0).standard_normal((1, 4, high)).astype(np.float32)
    (got,) = ort.InferenceSession(Path(report.path) / "model.onnx").run(None, {"x": x})
    wanted = network(torch.from_numpy(x)).detach().numpy()
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_no_size_is_tried_beyond_one_at_which_the_network_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention takes the square of a length: a bound at 5,000 positions took 23 GB."""
    monkeypatch.setattr(paths_at, "SLOW_SECONDS", -1.0)
    lengths: list[int] = []

    def noted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            lengths.append(x.shape[-1])
        return tripled(x, y)

    _, report = exported(noted, tmp_path)
    assert "L from 1 to 999" in str(report.limits)
    assert any("at L = 1000 the inputs are too large to try" in note for note in report.notes)
    assert max(int(n) for n in lengths) < 200


@pytest.mark.parametrize(("text", "fits"), [("x=FP32[N,4,L:..5000]", False), ("x=FP32[N,4,L:..999]", True)])
def test_a_declared_range_is_refused_where_another_path_begins_within(tmp_path: Path, text: str, fits: bool) -> None:
    if fits:
        assert not any("while" in note for note in exported(tripled, tmp_path, text)[1].notes)
        return
    with pytest.raises(normfold.ExportError, match=r"while L < 1000: at L = 1000 .* Declare L:1\.\.999"):
        exported(tripled, tmp_path, text)


def by_both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 3 if x.shape[0] * x.shape[-1] > 4000 else y


@pytest.mark.parametrize(("text", "fits"), [("x=FP32[N,4,L]", False), ("x=FP32[N:..4,4,L:..1000]", True)])
def test_a_condition_on_two_dimensions_needs_ranges_within_which_it_holds(
    tmp_path: Path, text: str, fits: bool
) -> None:
    if fits:
        exported(by_both, tmp_path, text)
        return
    with pytest.raises(
        normfold.ExportError, match=r"only while L\*N <= 4000: at .* Declare .*, as ranges for L and N$"
    ):
        exported(by_both, tmp_path, text)


def same_on_both_ways(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y + 0 if x.shape[-1] >= 1000 else y


def test_two_paths_that_give_the_same_are_no_bound(tmp_path: Path) -> None:
    assert not any("while" in note for note in exported(same_on_both_ways, tmp_path)[1].notes)


def padded(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean of ``y``, filled up to whole patches of 30."""
    rest = y.shape[-1] % 30
    return (F.pad(y, (0, 30 - rest)) if rest else y).mean(-1)


def padded_by_nothing(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same without a condition: by 0 entries where none are missing."""
    return F.pad(y, (0, -y.shape[-1] % 30)).mean(-1)


def in_a_window(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 3 if 10 <= x.shape[-1] < 20 else y


@pytest.mark.parametrize("text", ["x=FP32[N,4,L]", "x=FP32[N,4,L:5..400]"])
def test_a_path_that_depends_on_a_remainder_is_refused_with_what_to_write(tmp_path: Path, text: str) -> None:
    with pytest.raises(normfold.ExportError) as refused:
        exported(padded, tmp_path, text)
    message = str(refused.value)
    assert re.search(r"only while \(L % 30\) != 0: at L = 60 the network takes another path", message)
    assert "padding by 0 entries changes nothing" in message
    assert "where it is by -L % k entries, not by k - L % k." in message
    (steps,) = re.findall(r"Or declare sizes where that holds in --input, in steps: (L:\S+)$", message)
    assert steps == ("L:2..:30" if "5" not in text else "L:32..392:30")
    report = exported(padded, tmp_path, f"x=FP32[N,4,{steps}]")[1]
    assert report.inputs == (f"x=FP32[N:1..,4,{steps}]",)


def test_a_pad_of_a_remainder_without_a_condition_is_published_for_every_size(tmp_path: Path) -> None:
    network, report = exported(padded_by_nothing, tmp_path)
    assert report.inputs == ("x=FP32[N:1..,4,L:1..]",)
    session = ort.InferenceSession(Path(report.path) / "model.onnx")
    for size in (29, 30, 31, 60):
        x = np.random.default_rng(0).standard_normal((1, 4, size)).astype(np.float32)
        (got,), wanted = session.run(None, {"x": x}), network(torch.from_numpy(x)).detach().numpy()
        assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_range_begins_above_another_path_that_only_sizes_in_the_middle_take(tmp_path: Path) -> None:
    _, report = exported(in_a_window, tmp_path)
    assert report.inputs == ("x=FP32[N:1..,4,L:20..]",)
    assert any(re.search(r"L is from 20, while L >= 20: at L = 19 .* other numbers", note) for note in report.notes)
    proved = json.loads((Path(report.path) / "export.json").read_text())["verification"]["cases"]
    assert {"N=2 L=20", "N=1 L=20"} <= set(proved)
    assert not any(case.endswith(" L=1") for case in proved)


@pytest.mark.parametrize(("text", "fits"), [("x=FP32[N,4,L:5..400]", False), ("x=FP32[N,4,L:20..400]", True)])
def test_a_declared_range_is_refused_where_sizes_in_it_take_another_path(tmp_path: Path, text: str, fits: bool) -> None:
    if fits:
        assert not any("while" in note for note in exported(in_a_window, tmp_path, text)[1].notes)
        return
    with pytest.raises(normfold.ExportError, match=r"declared from 5, .* L >= 20: at L = 19 .* Declare L:20\.\.400"):
        exported(in_a_window, tmp_path, text)


def by_thousands(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 3 if x.shape[-1] // 1000 % 2 else y


def test_where_no_steps_keep_a_condition_the_range_around_the_traced_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(normfold.ExportError, match=r"\(\(L // 1000\) % 2\) == 0: at L = 1000 .* such as L:1\.\.999$"):
        exported(by_thousands, tmp_path)
    assert exported(by_thousands, tmp_path, "x=FP32[N,4,L:1..999]")[1].inputs == ("x=FP32[N:1..,4,L:1..999]",)


def faintly(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """At odd sizes other by 1/L⁴: less than 10⁻⁶ at 31, a hundredth at 3."""
    return y.mean(-1) + (y[..., 0] / x.shape[-1] ** 4 if x.shape[-1] % 2 else 0)


def test_another_path_is_found_where_it_shows_in_short_inputs_alone(tmp_path: Path) -> None:
    with pytest.raises(normfold.ExportError, match=r"while \(L % 2\) == 0: at L = 3 the network takes another path"):
        exported(faintly, tmp_path, "x=FP32[N,4,L:2..400]")


def by_thirds(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Divides by a size that is 0 below 64, and rounds as interpolation and padding do: both ways give the same."""
    length = x.shape[-1]
    odd = length > 64 and (length % (length // 64) or int(length * 2.0) > 600 or math.ceil(length / 3) > 90)
    return y * 1 if odd else y


def test_a_condition_that_divides_by_zero_at_other_sizes_is_no_error(tmp_path: Path) -> None:
    assert not any("while" in note for note in exported(by_thirds, tmp_path)[1].notes)


@given(traced=st.integers(1, 500), bound=st.integers(2, 1 << 20), step=st.integers(1, 9))
def test_the_first_size_that_breaks_a_bound_is_found(traced: int, bound: int, step: int) -> None:
    bound = max(bound, traced + 1)
    guard = Guard("L < bound", ("L",), lambda sizes: sizes["L"] < bound)
    first = traced + -(-(bound - traced) // step) * step
    end = 1 << 21
    assert list(guard.breaks({"L": traced}, "L", end, step)) == [first]
    assert list(guard.breaks({"L": traced}, "L", first - 1, step)) == []
    assert list(guard.breaks({"L": traced}, "L", 1, step)) == []


@given(traced=st.integers(1, 1 << 20), bound=st.integers(1, 1 << 20), step=st.integers(1, 9))
def test_the_first_size_below_that_breaks_a_bound_is_found(traced: int, bound: int, step: int) -> None:
    bound = min(bound, traced)
    guard = Guard("L >= bound", ("L",), lambda sizes: sizes["L"] >= bound)
    first = traced - ((traced - bound) // step + 1) * step
    assert list(guard.breaks({"L": traced}, "L", 1, step)) == ([first] if first >= 1 else [])


def test_every_size_near_the_traced_one_is_looked_at() -> None:
    guard = Guard("L % 30 != 0", ("L",), lambda sizes: sizes["L"] % 30 != 0, (0, 30))
    assert list(guard.breaks({"L": 500}, "L", 1)) == [*range(480, 0, -30)]
    assert list(guard.breaks({"L": 500}, "L", 600)) == [510, 540, 570, 600]
    assert list(guard.breaks({"L": 500}, "L", 600, 30)) == []
    window = Guard("L < 40 or L >= 100", ("L",), lambda sizes: not 40 <= sizes["L"] < 100, (40, 100))
    assert list(window.breaks({"L": 256}, "L", 1)) == [99]
    assert list(window.breaks({"L": 1 << 20}, "L", 1)) == [99]


@pytest.mark.parametrize(
    ("remainder", "typed", "steps"),
    [
        (20, "L:1..", "L:20..:30"),
        (0, "L:1..", "L:30..:30"),
        (20, "L:490..520", "None"),
        (20, "L:470..535", "L:470..530:30"),
        (0, "L:4..:4", "L:60..:60"),
    ],
)
def test_steps_at_which_a_remainder_stays_are_named(remainder: int, typed: str, steps: str) -> None:
    guard = Guard("", ("L",), lambda sizes: sizes["L"] % 30 == remainder, (0, 30))
    (d,) = dimensions([parse_input(f"x=FP32[{typed}]")])
    assert str(guard.in_steps({"L": 480 + remainder}, d)) == steps


def alone(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 3 if x.shape[0] == 1 else y


def test_another_path_for_a_batch_of_one_is_named_with_its_size(tmp_path: Path) -> None:
    said = "not the network.*At the other sizes it is the network; with N = 1 that takes another path there: give that"
    with pytest.raises(normfold.ExportError, match=said):
        exported(alone, tmp_path, "x=FP32[N,4,9]")


def padded_where_it_is_odd(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    up = F.interpolate(F.max_pool1d(y, 4), scale_factor=4.0)
    if up.shape[-1] != y.shape[-1]:
        up = F.pad(up, (0, y.shape[-1] - up.shape[-1]))
    return up + y


def cropped_by_an_eighth(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    pooled = F.max_pool1d(y, 8)
    crop = pooled.shape[-1] // 8
    return pooled[:, :, crop:-crop] if crop else pooled


def test_where_the_graph_refuses_a_size_the_message_names_the_steps_that_it_takes(tmp_path: Path) -> None:
    with pytest.raises(normfold.ExportError, match=re.escape("in steps: L:8..:4")):
        exported(padded_where_it_is_odd, tmp_path)
    exported(padded_where_it_is_odd, tmp_path, "x=FP32[N,4,L:8..:4]")


def test_where_an_output_has_another_shape_from_a_size_on_the_range_ends_there(tmp_path: Path) -> None:
    _, report = exported(cropped_by_an_eighth, tmp_path)
    assert "L from 8 to 63" in str(report.limits)


def padded_at_each_pool(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Three pools, each of which pads an odd length with a number that no other entry has, as EQTransformer does."""
    for _ in range(3):
        if y.shape[-1] % 2:
            y = F.pad(y, (0, 1), value=9.0)
        y = F.avg_pool1d(y, 2)
    return y * 2 if y.shape[-1] >= 4 else y


def test_of_several_conditions_on_one_length_the_first_message_names_steps_at_which_all_hold(tmp_path: Path) -> None:
    with pytest.raises(normfold.ExportError, match=re.escape("in steps: L:32..:8")):
        exported(padded_at_each_pool, tmp_path)
    exported(padded_at_each_pool, tmp_path, "x=FP32[N,4,L:32..:8]")


def padded_to_several_multiples(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    for multiple in (2, 3, 4, 5):
        if rest := y.shape[-1] % multiple:
            y = F.pad(y, (0, multiple - rest), value=9.0)
        y = F.avg_pool1d(y, multiple)
    return y


@pytest.mark.parametrize("typed", ["L", "L:2..:2", "L:2..:6"])
def test_a_condition_on_a_length_that_was_padded_is_understood(tmp_path: Path, typed: str) -> None:
    """Every second length was published, and at a quarter of them the graph gave an answer of another shape."""
    with pytest.raises(normfold.ExportError, match=re.escape("in steps: L:32..:120")):
        exported(padded_to_several_multiples, tmp_path, f"x=FP32[N,4,{typed}]")


def padded_by_zeros(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    for multiple in (5, 2, 4):
        if rest := y.shape[-1] % multiple:
            y = F.pad(y, (0, multiple - rest))
        y = F.avg_pool1d(y, multiple)
    return y


def test_paths_that_are_alike_at_the_first_size_are_compared_at_more(tmp_path: Path) -> None:
    """At 35 the zeros that the graph adds are those that the network adds at the next pool; from 41 on they are not."""
    with pytest.raises(normfold.ExportError, match=re.escape("in steps: L:32..:40")):
        exported(padded_by_zeros, tmp_path)
    _, report = exported(padded_by_zeros, tmp_path, "x=FP32[N,4,L:32..:40]")
    assert report.inputs == ("x=FP32[N:1..,4,L:32..:40]",)


def alike_between_eighths(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y = y if x.shape[-1] % 8 else y * 1
    return y * 3 if x.shape[-1] >= 60 else y


def test_a_bound_is_not_taken_for_a_condition_that_makes_no_difference(tmp_path: Path) -> None:
    _, report = exported(alike_between_eighths, tmp_path)
    assert report.inputs == ("x=FP32[N:1..,4,L:1..59]",)


def by_primes(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    for prime in (2, 3, 5, 7, 11):
        y = y if x.shape[-1] % prime else y + prime
    return y


def test_where_no_step_keeps_all_conditions_sizes_at_which_they_hold_are_named(tmp_path: Path) -> None:
    """A step that kept the first condition alone was named, and refused for the next one."""
    with pytest.raises(normfold.ExportError, match=re.escape("(L % 2) == 0: ") + r".* such as L:32\.\.32: ") as refused:
        exported(by_primes, tmp_path)
    assert "in steps:" not in str(refused.value)
    _, report = exported(by_primes, tmp_path, "x=FP32[N,4,L:32..32]")
    assert report.inputs == ("x=FP32[N:1..,4,L:32..32]",)


def shorter_and_shorter(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    for length in (60, 50, 40):
        y = y if x.shape[-1] <= length else y + 1
    for length in (3, 5, 8):
        y = y if x.shape[-1] >= length else y + 1
    return y


def test_of_several_bounds_of_a_range_the_last_is_noted(tmp_path: Path) -> None:
    _, report = exported(shorter_and_shorter, tmp_path)
    assert [note.partition(",")[0] for note in report.notes if note.startswith("L is")] == [
        "L is up to 40",
        "L is from 8",
    ]


def mean_of_pairs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The number of positions is odd only where height and width are."""
    y = y.flatten(2)
    return F.avg_pool1d(F.pad(y, (0, 1)) if y.shape[-1] % 2 else y, 2).mean(-1)


def even_sides(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    height, width = y.shape[-2:]
    y = F.pad(y, (0, 0, 0, 1)) if height % 2 else y
    return F.avg_pool2d(F.pad(y, (0, 1)) if width % 2 else y, 2)


def whole_pools(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Two conditions on the height: alone, and times the width."""
    y = F.pad(y, (0, 0, 0, 1)) if y.shape[-2] % 2 else y
    return mean_of_pairs(x, F.avg_pool2d(y, (2, 1)))


def sum_of_sides(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """No steps of one side keep the condition on their sum."""
    return mean_of_pairs(x, torch.cat([y.mean(-1), y.mean(-2)], -1))


class OfImages(nn.Module):
    def __init__(self, way: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.way(x, self.norm(self.conv(x)))
        return answer


@pytest.mark.parametrize(
    ("way", "said", "steps"),
    [
        (mean_of_pairs, [r"only while ((H*W) % 2) == 0: at H=33, W=33 the network takes"], "in steps: H:2..:2"),
        (
            even_sides,
            [r"only while (H % 2) == 0: at H = 33", r"and only while (W % 2) == 0: at W = 33"],
            "in steps: H:2..:2 and W:2..:2",
        ),
        (whole_pools, ["only while (H % 2) == 0: at H = 33", "% 2) == 0: at H=34, W=33"], "in steps: H:4..:4"),
        (sum_of_sides, ["only while ((H + W) % 2) == 0: at H=33, W=32"], "in steps: H:2..:2 and W:2..:2"),
    ],
)
def test_conditions_on_two_dimensions_are_told_together(tmp_path: Path, way: Any, said: list[str], steps: str) -> None:
    """The message named the first condition only. A condition on both dimensions together was not named at all."""
    network = OfImages(way).eval()

    def export(height: str, width: str) -> Any:
        inputs = f"x=FP32[N,1,{height},{width}]"
        return normfold.export_network(network, inputs=inputs, repository=tmp_path, name="sides", form="folded")

    with pytest.raises(normfold.ExportError) as refused:
        export("H", "W")
    assert all(text in str(refused.value) for text in said)
    assert str(refused.value).endswith(f", {steps}")
    given = dict(re.findall(r"([HW])(:\d\.\.:\d)", steps))
    assert export(f"H{given.get('H', '')}", f"W{given.get('W', '')}").limits


def brighter(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return y * 3 if y.shape[-1] * y.shape[-2] > 10_000 else y


def test_a_bound_of_two_dimensions_in_steps_is_found(tmp_path: Path) -> None:
    """It was looked for at doubled sizes, which were in no such steps, and each dimension alone stays below it."""
    with pytest.raises(normfold.ExportError, match=re.escape("only while H*W <= 10000: at H=")):
        normfold.export_network(
            OfImages(brighter).eval(), inputs="x=FP32[N,1,H:5..253:4,W:5..253:4]", repository=tmp_path, name="sides"
        )
