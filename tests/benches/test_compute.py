"""The comparison of runtimes: what it counts, when an aim is reached, what the page says, with invented figures."""

from __future__ import annotations

import socket

import numpy as np
import onnx
import pytest
from benches.compute import __main__ as program
from benches.compute.aims import AIMS, aims
from benches.compute.measure import (
    ALL,
    ALONE,
    HEADLINE,
    LONG,
    ONE,
    PEAK,
    PEAK_SIZE,
    SHORT,
    Cell,
    Effort,
    cells,
    foreseen,
    suits,
)
from benches.compute.multiply_adds import MultiplyAdds, count
from benches.compute.report import report, row, untimed
from benches.compute.routes import COMPILED, EAGER, EXPORTED, FIXED
from benches.compute.speedups import share_of_peak, speedup, to_fastest, to_fewer_threads
from benches.compute.where import SKIPPED, parts


def figures(published="lifted", family="ResNet", where=None, adds=1_000_000, **ms):
    """The figures of a network with these times at batch 1; "_" in a name becomes a space."""
    routes = {name.replace("_", " "): {"error": 1e-7, "ms": times} for name, times in ms.items()}
    return {
        "family": family,
        "published": published,
        "forms": ["unfolded", "folded", "lifted"],
        "input": [1, 3, 150],
        "multiply_adds": {"all": adds, "convolutions": adds, "depthwise": 0},
        "where": where or {"Conv": 0.9, "Relu": 0.1},
        "effort": Effort().plain,
        "cells": {str(HEADLINE): routes},
    }


def verdict(results, start):
    (line,) = (line for line in aims(results, {}).splitlines() if line.startswith(f"| {start}"))
    return line.split("|")[2:4]


@pytest.mark.parametrize(("sets", "least"), [(["AVX2"], 1.75), (["AVX2", "AVX-512"], 1.9)])
def test_an_aim_is_on_the_geometric_mean_of_the_networks_and_depends_on_the_processor(monkeypatch, sets, least):
    monkeypatch.setattr("benches.compute.aims.instruction_sets", lambda: sets)
    results = {
        "one": figures(lifted=[1.0] * 3, torch_export=[2 * (least + 0.01)] * 3),
        "two": figures(lifted=[2.0] * 3, torch_export=[least + 0.01] * 3),
    }
    name = "torch's default export in onnxruntime"
    assert verdict(results, name) == [f" {least + 0.01:.2f} × (2 networks) ", " yes "]
    assert f"- *{name}" not in aims(results, {})
    results["two"] = figures(lifted=[2.0] * 3, torch_export=[least - 0.1] * 3)
    assert verdict(results, name)[1] == " no "
    assert f"- *{name}" in aims(results, {})


def test_the_same_on_another_kind_of_processor_is_beside_the_aim():
    here = {"one": figures(lifted=[1.0] * 3, torch_export=[2.0] * 3)}
    there = {"one": figures(lifted=[1.0] * 3, torch_export=[1.5] * 3)}
    lines = aims(here, {"AVX2": there}).splitlines()
    assert lines[0] == "| aim | measured | reached | AVX2 |"
    assert lines[2].endswith("| 2.00 × (1 networks) | yes | 1.50 × (1 networks) |")


@pytest.mark.parametrize(
    ("ms", "found"),
    [(0.99, [" the least is one, 0.99 × ", " yes "]), (0.97, [" one 0.97 × ", " no "])],
)
def test_one_network_that_is_more_than_two_percent_slower_misses_the_aim(ms, found):
    results = {
        "one": figures(lifted=[1.0] * 3, torch_export=[ms] * 3),
        "two": figures(lifted=[1.0] * 3, torch_export=[9.0] * 3),
    }
    assert verdict(results, "torch's default export: no network") == found


def test_a_family_is_behind_by_the_mean_of_its_networks():
    results = {
        "tcn": figures(family="TCN", lifted=[1.0] * 3, OpenVINO=[0.5] * 3),
        "fast": figures(lifted=[1.0] * 3, OpenVINO=[4.0] * 3),
        "slow": figures(lifted=[1.0] * 3, OpenVINO=[0.9] * 3),
    }
    assert verdict(results, "OpenVINO: behind") == [" TCN 0.50 × ", " no "]
    del results["tcn"]
    assert verdict(results, "OpenVINO: behind") == [" ahead in all 1 ", " yes "]


def test_the_share_of_the_peak_is_taken_from_the_best_product_and_the_median_run():
    per_second = PEAK_SIZE**3 / 10e-3
    network = figures(lifted=[1.0, 2.0, 9.0], sgemm=[10.0, 11.0, 12.0], adds=per_second * 2e-3 * 0.75)
    assert PEAK == "sgemm"
    assert share_of_peak(network) == pytest.approx(0.75)
    assert "75%, 1 of 1" in verdict({"one": network}, "networks bound by convolutions")[0]


def test_a_network_that_spends_its_time_elsewhere_is_not_bound_by_convolutions():
    network = figures(lifted=[1.0] * 3, sgemm=[10.0] * 3, where={"Conv": 0.7, "Relu": 0.3})
    assert (
        AIMS["networks bound by convolutions: at least 60 % of the multiply-add peak"].found({"one": network}) is None
    )


def test_what_was_not_measured_is_no_aim():
    assert aims({"one": figures(lifted=[1.0] * 3)}, {}).splitlines()[2:] == []


def test_on_all_threads_the_speedup_is_that_of_the_variant_chosen_there():
    times = {"lifted": {"ms": [1.0] * 3}, "folded": {"ms": [0.5] * 3}, "eager": {"ms": [2.0] * 3}}
    one, both = Cell(1, SHORT, ONE), Cell(1, SHORT, ALL)
    network = {
        "published": "lifted",
        "published on all threads": "folded",
        "cells": {str(one): times, str(both): times},
    }
    assert [speedup(network, "eager", cell).median for cell in (one, both)] == [2.0, 4.0]
    del network["published on all threads"]  # figures of an older run
    assert speedup(network, "eager", both).median == 2.0


def test_a_speedup_is_the_others_time_over_the_published_form_in_the_same_round():
    network = figures(lifted=[1.0, 2.0, 4.0], folded=[9.0] * 3, eager=[2.0, 6.0, 16.0])
    found = speedup(network, EAGER)
    assert found is not None
    assert found.rounds == (2.0, 3.0, 4.0)
    assert speedup(network, EXPORTED) is None


def test_a_choice_of_a_slower_form_is_told():
    network = figures(published="folded", lifted=[1.0] * 3, folded=[1.5] * 3, unfolded=[3.0] * 3)
    assert to_fastest({"one": network}) == {"one": 1.5}


def test_tuning_gives_what_one_thread_saves_where_all_are_slower():
    slower, faster = figures(), figures()
    for network, alone in ((slower, 1.0), (faster, 4.0)):
        times = {"lifted": {"ms": [2.0] * 3}, ALONE: {"ms": [alone] * 3}}
        network["cells"][str(Cell(1, SHORT, ALL))] = times
    assert to_fewer_threads({"slower": slower, "faster": faster, "one CPU": figures()}) == {
        "slower": 2.0,
        "faster": 1.0,
    }


def test_a_size_is_foreseen_by_what_the_routes_took_at_batch_1():
    network = figures(lifted=[10.0] * 3, eager=[30.0] * 3)
    # Two runs that are not counted, and three that are.
    assert foreseen(network, Cell(8, SHORT, ONE)) == pytest.approx(0.040 * 8 * 5)
    assert foreseen(network, Cell(1, LONG, ONE)) == pytest.approx(0.040 * 4 * 5)


def test_what_there_was_no_time_for_is_named():
    network = figures(lifted=[1.0] * 3) | {"no time": [str(Cell(32, SHORT, ONE)), str(Cell(32, SHORT, ALL))]}
    sizes = "batch 32, short, one thread; batch 32, short, all threads"
    assert untimed({"one": network}) == f"- one ({sizes}): would take longer than the time that a network is given"


@pytest.mark.parametrize(
    ("effort", "said"),
    [
        (Effort(), "At most 11 rounds of 25 ms a route at batch 1 on one thread, 5 elsewhere, 2 s a size."),
        (
            Effort(rounds=5, quick=True, skip=(COMPILED,)),
            "At most 5 rounds of 25 ms a route, batch 1 and one thread only (`--quick`); not timed: compile (`--skip`)",
        ),
    ],
)
def test_the_page_says_how_it_was_measured(effort, said):
    assert said in report({"one": figures(lifted=[1.0] * 3) | {"effort": effort.plain}}, {})


def test_a_wrong_and_a_failed_route_are_named_and_have_no_ratio():
    network = figures(lifted=[1.0] * 3, eager=[2.0] * 3)
    network["cells"][str(HEADLINE)] |= {
        "OpenVINO": {"error": 3.0, "seconds": 1.0, "wrong": True},
        COMPILED: {"failed": "TimeoutError: took more than 120 s"},
    }
    assert row("one", network) == "| one | ResNet | lifted | 1 | 2.00 ± 0.00 | failed |  |  |  | wrong |  |"
    assert untimed({"one": network}).splitlines() == [
        "- one, OpenVINO (everywhere): wrong, by 3e+00",
        "- one, compile (everywhere): TimeoutError: took more than 120 s",
    ]


def test_the_page_has_the_aims_before_the_tables_and_no_name_of_the_host():
    page = report({"one": figures(lifted=[1.0] * 3, folded=[2.0] * 3, unfolded=[4.0] * 3, torch_export=[3.0] * 3)}, {})
    assert page.index(
        "| torch's default export in onnxruntime: 1.75 × faster with AVX2 (1.9 × with AVX-512) | 3.00 ×"
    ) < page.index("| network |")
    assert "| folded, to lifted (layout) | 2.00 × |" in page
    assert "(choice) | 1.00 × |" in page
    assert "| batch 1, short, one thread | 1 |" in page
    assert "| one | 1 | 0% |  | yes | Conv 90%, Relu 10% |" in page
    assert socket.gethostname() not in page


def test_every_batch_is_timed_short_and_batch_1_long_where_the_length_is_dynamic(monkeypatch):
    monkeypatch.setattr("benches.compute.measure.available_cpus", lambda: 2)
    one = [Cell(1, SHORT, ONE), Cell(8, SHORT, ONE), Cell(32, SHORT, ONE)]
    assert [cell for cell in cells(False, Effort()) if cell.threads == ONE] == one
    assert list(cells(True, Effort()))[3:5] == [Cell(1, LONG, ONE), Cell(1, SHORT, ALL)]
    assert list(cells(True, Effort(quick=True))) == [HEADLINE]


def test_all_threads_of_one_cpu_are_one_thread(monkeypatch):
    monkeypatch.setattr("benches.compute.measure.available_cpus", lambda: 1)
    assert {cell.threads for cell in cells(True, Effort())} == {ONE}


def test_routes_made_for_one_shape_are_timed_at_batch_1_on_one_thread():
    long = Cell(1, LONG, ONE)
    assert [suits(COMPILED, cell, "m5") for cell in (HEADLINE, long, Cell(8, SHORT, ONE))] == [False, False, False]
    assert [suits(COMPILED, cell, "eegnet") for cell in (HEADLINE, long, Cell(8, SHORT, ONE))] == [True, False, False]
    assert [suits(FIXED, cell, "m5") for cell in (HEADLINE, long, Cell(8, SHORT, ONE), Cell(1, SHORT, ALL))] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("node", "weights", "expected"),
    [
        # 4 outputs of 6 channels, each a sum over 2 channels of 3.
        ("y = Conv<group = 2>(x, w)", {"w": (6, 2, 3)}, MultiplyAdds(2 * 24 * 6, 2 * 24 * 6, 0)),
        ("y = Conv<group = 4>(x, w)", {"w": (4, 1, 3)}, MultiplyAdds(2 * 16 * 3, 2 * 16 * 3, 2 * 16 * 3)),
        # 6 inputs of 4 channels, each spread over 5 channels of 3.
        ("y = ConvTranspose(x, w)", {"w": (4, 5, 3)}, MultiplyAdds(2 * 24 * 15, 2 * 24 * 15, 0)),
        ("y = MatMul(x, w)", {"w": (6, 7)}, MultiplyAdds(2 * 4 * 7 * 6, 0, 0)),
        ("f = Flatten(x) y = Gemm<transB = 1>(f, w)", {"w": (5, 24)}, MultiplyAdds(2 * 5 * 24, 0, 0)),
        # 2 steps of 4 sequences; 3 gates of 5 from 6 inputs and from 5 states.
        ("y = GRU<hidden_size = 5>(x, w, r)", {"w": (1, 15, 6), "r": (1, 15, 5)}, MultiplyAdds(8 * (90 + 75), 0, 0)),
        (", y = GRU<hidden_size = 5>(x, w, r)", {"w": (1, 15, 6), "r": (1, 15, 5)}, MultiplyAdds(8 * 165, 0, 0)),
        ("y = Relu(x)", {}, MultiplyAdds(0, 0, 0)),
    ],
)
def test_multiply_adds_are_counted_from_the_shapes_of_a_run(tmp_path, node, weights, expected):
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 17]> g (float[N, 4, L] x) => (float[] y) {{ {node} }}'
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for name, shape in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(model, tmp_path / "model.onnx")
    assert count(tmp_path / "model.onnx", np.ones((2, 4, 6), np.float32)) == expected


def test_a_profile_counts_kernels_and_leaves_out_the_first_runs_of_each():
    def kernel(name, kind, dur, cat="Node", suffix="_kernel_time"):
        return {"cat": cat, "name": name + suffix, "dur": dur, "args": {"op_name": kind}}

    events = [kernel("a", "Conv", 1000)] * SKIPPED + [kernel("b", "Relu", 1000)] * SKIPPED
    events += [kernel("a", "Conv", 3), kernel("b", "Relu", 1), kernel("c", "Add", 9, suffix="_fence_before")]
    events += [{"cat": "Session", "name": "model_run", "dur": 99}]
    assert parts(events) == {"Conv": 0.75, "Relu": 0.25}


def test_a_run_goes_on_from_what_was_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "build_missing", lambda names, zoo: None)
    measured = []

    def in_a_process(name, arguments):
        measured.append(name)
        return figures(lifted=[1.0] * 3)

    monkeypatch.setattr(program, "in_a_process", in_a_process)
    for name in ("m5", "tsai_fcn"):
        (tmp_path / name).mkdir()
        for file in program.FILES:
            (tmp_path / name / file).touch()
    monkeypatch.setattr("sys.argv", ["compute", str(tmp_path), "--networks", "m5"])
    assert program.main() == 0
    monkeypatch.setattr("sys.argv", ["compute", str(tmp_path)])
    assert program.main() == 0
    assert measured == ["m5", "tsai_fcn"]
    monkeypatch.setattr("sys.argv", ["compute", str(tmp_path), "--networks", "m5", "--rounds", "5"])
    assert program.main() == 0
    assert measured == ["m5", "tsai_fcn", "m5"], "the figures of other options are measured anew"
    assert sorted(program.load(tmp_path / "compute.json")) == ["m5", "tsai_fcn"]
    assert "gunpoint: left out: no unfolded.onnx and torch_default.onnx" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "nosuch"], "--networks: no nosuch; there are surnames, gunpoint"),
        (["--skip", "tensorrt"], "--skip: no tensorrt; there are eager, compile"),
        (["--rounds", "2"], "--rounds: got 2, expected at least 3"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["compute", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
