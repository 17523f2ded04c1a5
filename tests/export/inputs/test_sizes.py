from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import Any

import pytest

from normfold.export.errors import InputSpecError
from normfold.export.inputs.sizes import Attempt, batch_dimension, find_sizes
from normfold.export.inputs.specs import dimensions, parse_inputs
from normfold.export.proof.accepted_sizes import sizes_of, sizes_of_both
from normfold.export.sources.origin import Origin


def takes(condition):  # type: ignore[no-untyped-def]
    """Return a network that refuses every size for which ``condition`` is false."""

    def attempt(sizes: Mapping[str, int]) -> None:
        if not condition(sizes):
            raise RuntimeError(f"refused {dict(sizes)}")

    return attempt


def test_the_shortest_length_is_found_by_trying() -> None:
    specs = parse_inputs(["x=FP32[N,3,L]"])
    sizes = find_sizes(specs, takes(lambda s: s["L"] >= 9))
    assert str(sizes.specs[0]) == "x=FP32[N:1..,3,L:9..]"
    assert {"N": 1, "L": 9} in sizes.proof
    assert {s["N"] for s in sizes.proof} == {1, 2, 5}
    assert len({s["L"] for s in sizes.proof}) >= 4


def test_sizes_that_the_network_refuses_between_accepted_ones_are_left_out() -> None:
    sizes = find_sizes(parse_inputs(["x=FP32[N,3,L]"]), takes(lambda s: s["L"] % 16 == 0))
    assert sizes.trace["L"] == 32
    assert all(s["L"] % 16 == 0 for s in sizes.proof)
    assert {16, 32, 48, 80} <= {s["L"] for s in sizes.proof}


@pytest.mark.parametrize(
    ("declared", "condition", "found", "every"),
    [
        ("L", lambda n: n % 8 == 0, "L:8..:8", "8, 16, 24"),
        ("L", lambda n: n % 8 == 0 and n >= 24, "L:24..:8", "24, 32, 40"),
        ("L:8..", lambda n: n % 8 == 0, "L:8..:8", "8, 16, 24"),
        ("L:16..160", lambda n: n % 8 == 0, "L:16..160:8", "16, 24, 32"),
        ("L:32..40", lambda n: n % 8 == 0, "L:32..40:8", "32, 40, 48"),
        ("L:24..32", lambda n: n % 8 == 0, "L:24..32:8", "24, 32, 40"),
        ("L", lambda n: n % 5 == 0, "L:5..:5", "5, 10, 15"),
        ("L", lambda n: n % 24 == 16, "L:16..:24", "16, 40, 64"),
        ("L", lambda n: n % 512 == 0, "L:512..:512", "512, 1024, 1536"),
    ],
)
def test_a_step_between_the_sizes_that_work_is_found_and_said(declared, condition, found, every) -> None:  # type: ignore[no-untyped-def]
    sizes = find_sizes(parse_inputs([f"x=FP32[N,3,{declared}]"]), takes(lambda s: condition(s["L"])))
    assert str(sizes.specs[0]) == f"x=FP32[N:1..,3,{found}]"
    (note,) = sizes.notes
    assert f"seen to take L in steps of {found.rpartition(':')[2]}: {every}, …; it may take other sizes, too. " in note
    assert note.endswith(f"In --input these steps are {found}")
    assert len({s["L"] for s in sizes.proof}) >= 2


def test_a_declared_step_is_kept_to_and_nothing_is_said_of_it() -> None:
    asked: list[int] = []

    def attempt(sizes: Mapping[str, int]) -> None:
        asked.append(sizes["L"])

    sizes = find_sizes(parse_inputs(["x=FP32[N,3,L:9..100:7]"]), attempt)
    assert all((n - 9) % 7 == 0 and 9 <= n <= 100 for n in asked)
    assert {9, 100} <= {s["L"] for s in sizes.proof}
    assert str(sizes.specs[0]) == "x=FP32[N:1..,3,L:9..100:7]"
    assert sizes.notes == ()


def test_bounds_and_steps_that_do_not_run_are_refused_with_those_that_do() -> None:
    eights = takes(lambda s: s["L"] % 8 == 0)
    with pytest.raises(InputSpecError, match=r"declared from 4, .* for example L:8\.\.96:8: 8, 16, 24, …"):
        find_sizes(parse_inputs(["x=FP32[N,3,L:4..100]"]), eights)
    with pytest.raises(InputSpecError, match=r"declared up to 100, .*Declare what it takes: L:8\.\.96:8: 8, 16, 24, …"):
        find_sizes(parse_inputs(["x=FP32[N,3,L:8..100]"]), eights)
    with pytest.raises(InputSpecError, match=r"in steps of 4, but the network does not run at L = 36: .* steps of 8"):
        find_sizes(parse_inputs(["x=FP32[N,3,L:8..:4]"]), eights)


def test_a_network_of_one_length_has_no_step() -> None:
    sizes = find_sizes(parse_inputs(["x=FP32[N,3,L]"]), takes(lambda s: s["L"] == 64))
    note = "L is up to 64: the network does not run at L = 65"
    assert (str(sizes.specs[0]), sizes.notes) == ("x=FP32[N:1..,3,L:64..64]", (note,))


@pytest.mark.parametrize(
    ("declared", "takes_it", "found"),
    [
        ("N,3,L", lambda s: s["L"] <= 50, "N:1..,3,L:1..50"),
        ("N,3,L", lambda s: s["L"] <= 64, "N:1..,3,L:1..64"),
        ("N,3,L:9..", lambda s: s["L"] <= 50, "N:1..,3,L:9..50"),
        ("N,3,L", lambda s: s["L"] % 8 == 0 and s["L"] <= 60, "N:1..,3,L:8..56:8"),
        ("N,3,L", lambda s: s["N"] <= 4, "N:1..4,3,L:1.."),
    ],
)
def test_a_size_that_the_network_was_seen_to_refuse_is_beyond_the_range(declared, takes_it, found) -> None:  # type: ignore[no-untyped-def]
    sizes = find_sizes(parse_inputs([f"x=FP32[{declared}]"]), takes(takes_it))
    assert str(sizes.specs[0]) == f"x=FP32[{found}]"
    assert any("is up to" in note for note in sizes.notes)
    (bounded,) = (d for d in dimensions(sizes.specs) if d.high)
    assert bounded.high in {s[bounded.name] for s in sizes.proof}


def test_a_batch_of_samples_that_is_larger_than_those_tried_is_no_bound() -> None:
    """The batch of 5, which is tried as a larger one, is smaller here."""
    sizes = find_sizes(parse_inputs(["x=FP32[N,3,L]"]), takes(lambda s: s["N"] >= 6), [{"N": 8, "L": 32}])
    assert (str(sizes.specs[0]), sizes.notes) == ("x=FP32[N:6..,3,L:1..]", ())


def test_memory_that_ends_is_no_bound_and_is_not_searched_for() -> None:
    tried = []

    def attempt(sizes: Mapping[str, int]) -> None:
        tried.append(sizes["L"])
        if sizes["L"] > 400:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 28800000000 bytes")

    sizes = find_sizes(parse_inputs(["x=FP32[N,3,L]"]), attempt, [{"N": 2, "L": 300}])
    assert str(sizes.specs[0]) == "x=FP32[N:1..,3,L:1..]"
    assert sizes.notes == ("L was proved up to 300: 601 takes more memory than there is",)
    assert [length for length in tried if length > 400] == [601]


def test_a_length_that_depends_on_another_has_no_bound() -> None:
    specs = parse_inputs(["x=FP32[N,1,L]", "condition=FP32[N,80,M]"])
    sizes = find_sizes(specs, takes(lambda s: s["L"] == s["M"]))
    assert not any(d.high for d in dimensions(sizes.specs))


def test_declared_corners_are_all_proved() -> None:
    sizes = find_sizes(parse_inputs(["x=FP32[N:1..64,3,L:5..400]"]), takes(lambda s: s["L"] >= 5))
    for corner in ({"N": 1, "L": 5}, {"N": 64, "L": 400}):
        assert corner in sizes.proof


def test_a_declared_bound_that_does_not_run_is_refused_with_one_that_does() -> None:
    with pytest.raises(InputSpecError, match=r"does not run at L = 3: refused .* for example L:9\.\."):
        find_sizes(parse_inputs(["x=FP32[N,3,L:3..]"]), takes(lambda s: s["L"] >= 9))
    with pytest.raises(InputSpecError, match="declared up to 400"):
        find_sizes(parse_inputs(["x=FP32[N,3,L:9..400]"]), takes(lambda s: 9 <= s["L"] <= 300))


def raises(error: Exception) -> Attempt:
    def attempt(sizes: Mapping[str, int]) -> None:
        raise error

    return attempt


def test_numbers_beyond_a_table_are_left_to_be_found() -> None:
    with pytest.raises(InputSpecError, match=r"; t=INT64\[N,L\]:0\.\.20 holds .* --input 't=INT64\[N,L\]', and"):
        find_sizes(parse_inputs(["t=INT64[N,L]:0..20"]), raises(IndexError("index out of range in self")))


def test_the_list_of_overloads_that_torch_adds_is_not_announced() -> None:
    error = TypeError("clamp() got (Tensor, int, Tensor), but expected one of:\n * (Tensor input)")
    with pytest.raises(InputSpecError, match=r"got \(Tensor, int, Tensor\)\. Other sizes"):
        find_sizes(parse_inputs(["x=FP32[N,L]"]), raises(error))


def test_what_was_asked_wrongly_is_not_blamed_on_the_sizes() -> None:
    with pytest.raises(InputSpecError, match=r"^there is no output 'z'$"):
        find_sizes(parse_inputs(["x=FP32[N,L]"]), raises(InputSpecError("there is no output 'z'")))


def test_a_shape_that_no_size_mends_quotes_the_network() -> None:
    with pytest.raises(InputSpecError, match=r"does not take x FP32\[2, 76, 32\].*refused"):
        find_sizes(parse_inputs(["x=FP32[N,76,L]"]), takes(lambda s: False))


def flattened(needed: int, stride: int):  # type: ignore[no-untyped-def]
    """Return a network of a strided convolution of 4 channels, and a Linear of ``needed`` entries behind a Flatten."""

    def attempt(sizes: Mapping[str, int]) -> None:
        given = 4 * ((sizes["L"] - 1) // stride + 1)
        if given != needed:
            raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied (2x{given} and {needed}x4)")

    return attempt


@pytest.mark.parametrize(
    ("needed", "stride", "some", "best"),
    [(1000, 1, "250", 250), (1200, 4, "1197 to 1200", 1200), (100, 5, "121 to 125", 125)],
)
def test_the_one_length_that_a_flattening_network_takes_is_computed_from_its_errors(needed, stride, some, best) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputSpecError) as caught:
        find_sizes(parse_inputs(["x=FP32[N,2,L:1..9999]"]), flattened(needed, stride))
    assert f"it runs at L = {some}. Write that size: --input 'x=FP32[N,2,{best}]'" in str(caught.value)


def test_errors_without_a_size_are_quoted_and_integers_for_a_signal_are_asked_about() -> None:
    def attempt(sizes: Mapping[str, int]) -> None:
        raise RuntimeError("Input type (long int) and bias type (float) should be the same")

    with pytest.raises(InputSpecError, match="a signal is FP32"):
        find_sizes(parse_inputs(["x=INT64[N,2,L]"]), attempt)
    with pytest.raises(InputSpecError, match="a batch is a first dimension with a name"):
        find_sizes(parse_inputs(["x=FP32[2,L]"]), attempt)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Torch not compiled with CUDA enabled", True),
        ("Found no NVIDIA driver on your system. Please check", True),
        ("No CUDA GPUs are available", True),
        ("Expected all tensors to be on the same device, but found at least two devices, cpu and cuda:0!", True),
        ("Could not run 'quantized::add' from the 'CPU' backend: [Meta, QuantizedCPU, AutogradCUDA]", False),
        ("no file /data/cuda-run/a.txt", False),
    ],
)
def test_a_network_that_asks_for_a_gpu_is_told_that_the_export_runs_on_the_cpu(said: str, told: bool) -> None:
    def attempt(sizes: Mapping[str, int]) -> None:
        raise AssertionError(said)

    with pytest.raises(InputSpecError) as error:
        find_sizes(parse_inputs(["x=FP32[N,3]"]), attempt)
    hint = "the export runs on the CPU: write x.to(other.device), or device=x.device, in place of .cuda()"
    assert str(error.value).endswith(hint) is told


def test_an_upper_bound_beyond_memory_is_proved_as_far_as_it_goes_and_says_so() -> None:
    sizes = find_sizes(parse_inputs(["x=FP32[N,16,L:1..10000000000]"]), takes(lambda s: s["L"] < 10**6))
    assert max(s["N"] * 16 * s["L"] for s in sizes.proof) <= 1 << 21
    assert "not to 10000000000" in sizes.notes[0]


def test_an_input_too_large_to_try_is_refused_without_allocating() -> None:
    with pytest.raises(InputSpecError, match="too large to try"):
        find_sizes(parse_inputs(["x=FP32[60000000,60000000]"]), takes(lambda s: True))


def test_after_a_slow_refusal_no_larger_size_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", itertools.count(0, 5).__next__)
    tried = []

    def attempt(sizes: Mapping[str, int]) -> None:
        tried.append(sizes["L"])
        raise RuntimeError("the condition does not fit the signal")

    with pytest.raises(InputSpecError, match="if L and M depend on each other, give their sizes"):
        find_sizes(parse_inputs(["x=FP32[N,1,L]", "condition=FP32[N,80,M]"]), attempt)
    assert tried[0] == 32
    assert max(tried) == 32


def test_the_sizes_of_a_sample_are_tried_first() -> None:
    sizes = find_sizes(parse_inputs(["x=FP32[N,3,L]"]), takes(lambda s: s["L"] == 17), [{"N": 1, "L": 17}])
    assert sizes.trace == {"N": 2, "L": 17}


def test_the_batch_is_the_dimension_that_every_input_has_first() -> None:
    assert batch_dimension(parse_inputs(["a=FP32[N,3]", "b=FP32[N]"])).name == "N"  # type: ignore[union-attr]
    assert batch_dimension(parse_inputs(["a=FP32[N,3]", "b=FP32[M]"])) is None
    assert batch_dimension(parse_inputs(["a=FP32[2,3]"])) is None


def squeezing(*texts: str) -> Origin:
    """A network that drops its last axis when it is short, as EEG networks do."""

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        x = inputs["x"]
        if x.shape[2] < 9:
            raise RuntimeError("too short")
        y = x[:, :, 8:]
        return {"y": y[:, :, 0] if y.shape[2] < 4 else y}

    specs = parse_inputs(texts)
    return Origin("net", "", "", "", specs, run, lambda i: (run, "float64", ()), lambda *a: None)  # type: ignore[arg-type, return-value]


def graph(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": inputs["x"][:, :, 8:]}


def test_a_bound_that_was_found_by_trying_is_raised_to_where_the_graph_follows_the_network() -> None:
    network = squeezing("x=FP32[N,3,L]")
    alone = sizes_of(network)
    assert str(alone.specs[0]) == "x=FP32[N:1..,3,L:9..]"
    both = sizes_of_both(network, (), alone, graph)
    assert str(both.specs[0]) == "x=FP32[N:1..,3,L:12..]"
    assert both.trace == alone.trace
    assert {s["L"] for s in alone.proof} - {s["L"] for s in both.proof} == {9}
    assert both.notes == ("L is from 12: below, down to 9, the network takes another path than its graph",)


def test_a_declared_bound_below_that_is_refused_with_one_that_holds() -> None:
    network = squeezing("x=FP32[N,3,L:10..]")
    with pytest.raises(InputSpecError, match=r"takes another path there\. Declare what it takes, for example L:12\.\."):
        sizes_of_both(network, (), sizes_of(network), graph)


def test_sizes_above_the_bound_at_which_the_graph_differs_stay_for_the_proof_to_judge() -> None:
    network = squeezing("x=FP32[N,3,L]")
    alone = sizes_of(network)
    largest = max(s["L"] for s in alone.proof)

    def wrong_above(inputs: Mapping[str, Any]) -> dict[str, Any]:
        y = graph(inputs)["y"]
        return {"y": y[:, :, 0] if inputs["x"].shape[2] == largest else y}

    both = sizes_of_both(network, (), alone, wrong_above)
    assert largest in {s["L"] for s in both.proof}
