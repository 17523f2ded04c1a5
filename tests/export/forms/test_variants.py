from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from tests.export.fold.graphs import graph, norm, operators, weights

from normfold.cli.main import main
from normfold.export import choices
from normfold.export.choices import AUTO, VARIANTS, check_threads, check_variant
from normfold.export.errors import ExportError, VerificationError
from normfold.export.fold import fold
from normfold.export.forms import variants
from normfold.export.forms.variants import REFOLDS, REWRITES, branches_apart, choose
from normfold.export.graphs.exact import Graph, unrounded
from normfold.export.graphs.runtime import Runtime
from normfold.export.graphs.unrounded import holding
from normfold.export.inputs.specs import parse_inputs
from normfold.export.pipeline import fold_and_prove
from normfold.export.proof.proof import Proof, Proved
from normfold.export.sources.onnx_origin import open_onnx

pytestmark = pytest.mark.usefixtures("cache")

INPUTS = {"x": np.ones((1, 4), np.float32)}
#: Two BatchNorms that fold, the second by a carrier. Lifted, the 7 channels can be rounded up to 8, and the 8 kept.
CONVOLUTIONS = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 4, L] x) => (float[N, 4, M] y)
<float[7,4,3] w1 = {%s}, float[8,7,3] w2 = {%s}, float[4,8,3] w3 = {%s},
 float[7] g = {1,2,3,4,5,6,7}, float[7] b = {1,0,1,0,1,0,1}, float[7] m = {0,1,0,1,0,1,0}, float[7] v = {1,2,1,2,1,2,1},
 float[8] h = {1,-2,1,-2,1,-2,1,-2}, float[8] k = {1,0,1,0,1,0,1,0}, float[8] q = {1,1,2,2,1,1,2,2}>
{ c = Conv (x, w1) r = Relu (c) n = BatchNormalization (r, g, b, m, v)
  d = Conv (n, w2) s = Relu (d) p = BatchNormalization (s, h, k, k, q) y = Conv <pads = [1, 1]> (p, w3) }"""


def identity(times: int = 1) -> bytes:
    body = "\n".join(f"v{i + 1} = Relu (v{i})" for i in range(times - 1))
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float[N, 4] x) => (float[N, 4] y) {{ v0 = Relu (x) {body} y = Relu (v{times - 1}) }}"""
    return bytes(onnx.parser.parse_model(text).SerializeToString())


@pytest.fixture
def convolutions(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    weights = tuple(",".join(f"{v:.3f}" for v in rng.standard_normal(size)) for size in (84, 168, 96))
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx.parser.parse_model(CONVOLUTIONS % weights).SerializeToString())
    return path


def clock(monkeypatch: pytest.MonkeyPatch, *measured: Mapping[str, float]) -> None:
    """Let the measurements, in turn, give these medians."""
    results: Iterator[Mapping[str, float]] = iter(measured)
    monkeypatch.setattr(variants, "medians", lambda *a, **k: (dict(next(results)), 9))


def chosen(monkeypatch: pytest.MonkeyPatch, *measured: Mapping[str, float]) -> str:
    """The form that a first export publishes where the measurements, in turn, give these medians."""
    clock(monkeypatch, *measured)
    choice = choose({name: identity() for name in measured[0]}, INPUTS, remeasure=True)
    assert (choice.rounds, choice.remembered) == (9, False)
    return choice.variant


def test_the_folded_graph_is_published_unless_another_is_clearly_faster_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    slower, near, faster = (
        {"unfolded": 2.0, "folded": 1.0},
        {"unfolded": 0.97, "folded": 1.0},
        {"unfolded": 0.5, "folded": 1.0},
    )
    assert chosen(monkeypatch, slower) == "folded"
    assert chosen(monkeypatch, near) == "folded"
    assert chosen(monkeypatch, faster, near) == "folded"
    assert chosen(monkeypatch, faster, faster) == "unfolded"


def test_a_form_for_a_target_needs_a_smaller_margin_and_the_fastest_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"unfolded": 2.0, "folded": 1.0, "lifted": 0.9, "other": 0.95}
    assert chosen(monkeypatch, times, times) == "lifted"
    assert chosen(monkeypatch, {**times, "lifted": 0.99, "other": 0.98}) == "folded"


def test_a_form_that_keeps_batchnorms_must_be_faster_by_more(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = {"folded": 1.0, "lifted": 0.8, "blocked": 0.77}, {"folded": 1.0, "lifted": 0.8, "blocked": 0.7}
    assert chosen(monkeypatch, near, near) == "lifted"
    assert chosen(monkeypatch, far, far) == "blocked"
    assert chosen(monkeypatch, {"folded": 1.0, "blocked": 0.93}) == "folded"


def test_real_graphs_are_timed_in_turn() -> None:
    choice = choose({"unfolded": identity(60), "folded": identity()}, INPUTS)
    assert choice.rounds >= 9
    assert all(v.median_ms > 0 for v in choice.variants)
    assert [v.bytes for v in choice.variants] == [len(identity(60)), len(identity())]


def test_each_number_of_threads_has_its_own_choice_and_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "affinity_cpus", lambda: 2)
    forms = {"unfolded": identity(2), "folded": identity()}
    faster, slower = {"unfolded": 0.5, "folded": 1.0}, {"unfolded": 2.0, "folded": 1.0}
    clock(monkeypatch, slower, faster, faster)
    assert [choose(forms, INPUTS, threads=threads).variant for threads in (1, 2)] == ["folded", "unfolded"]
    again = choose(forms, INPUTS, threads=2)
    assert (again.variant, again.remembered, again.machine.threads) == ("unfolded", True, 2)


@pytest.mark.parametrize(("cpus", "threads", "there"), [(2, 3, "2 CPUs; give 1 to 2"), (1, 2, "1 CPU;"), (2, 0, "2 C")])
def test_threads_that_this_machine_does_not_have_are_refused(
    monkeypatch: pytest.MonkeyPatch, cpus: int, threads: int, there: str
) -> None:
    monkeypatch.setattr(choices, "affinity_cpus", lambda: cpus)
    with pytest.raises(ExportError, match=f"--threads {threads}: the forms are .* this machine, which has {there}"):
        check_threads(threads)


def test_both_commands_time_the_forms_on_the_threads_that_are_asked_for(
    convolutions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "affinity_cpus", lambda: 2)
    target = tmp_path / "out.onnx"
    result = CliRunner().invoke(main, ["fold", str(convolutions), str(target), "--threads", "2"])
    assert result.exit_code == 0, result.output
    assert "2 threads" in result.output
    assert "1 thread" not in result.output
    result = CliRunner().invoke(main, ["fold", str(convolutions), str(target), "--overwrite", "--threads", "9"])
    assert result.exit_code == 1
    assert "give 1 to 2" in result.output


def test_a_later_choice_takes_figures_and_form_of_the_first_whatever_the_clock_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forms = {"unfolded": identity(2), "folded": identity()}
    faster, slower = {"unfolded": 0.5, "folded": 1.0}, {"unfolded": 2.0, "folded": 1.0}
    clock(monkeypatch, faster, faster, slower)
    first, second = choose(forms, INPUTS), choose(forms, INPUTS)
    assert (first.variant, first.remembered, second.remembered) == ("unfolded", False, True)
    assert second.variants == first.variants
    again = choose(forms, INPUTS, remeasure=True)
    assert (again.variant, again.remembered) == ("folded", False)
    assert choose(forms, INPUTS).variants == again.variants


def test_a_form_that_is_asked_for_is_marked_and_its_figures_are_kept_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"unfolded": 2.0, "folded": 1.0}
    clock(monkeypatch, times)
    forms = {"unfolded": identity(2), "folded": identity()}
    assert choose(forms, INPUTS, "unfolded").variant == "unfolded"
    assert choose(forms, INPUTS, "folded").variant == "folded"
    choice = choose(forms, INPUTS)
    assert (choice.variant, choice.remembered) == ("folded", True)


def folded(
    path: Path, monkeypatch: pytest.MonkeyPatch, variant: str = AUTO, fast: str = "folded", **options: bool
) -> dict:  # type: ignore[type-arg]
    """Fold a file on a clock by which one form takes half as long as the others; return file and report."""
    monkeypatch.setattr(variants, "medians", lambda graphs, *a, **k: ({g: 1 - 0.5 * (g == fast) for g in graphs}, 9))
    made = fold_and_prove(open_onnx(path, parse_inputs(()), opset=None), (), "net", 18, variant=variant, **options)
    return {"content": made.content, "report": made.report}


def test_two_exports_whose_clocks_point_at_different_forms_write_the_same_bytes(
    convolutions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = folded(convolutions, monkeypatch, fast="lifted")
    second = folded(convolutions, monkeypatch, fast="folded")
    assert first["report"].published.variant == "lifted"
    assert second["content"] == first["content"]
    assert second["report"].variants == first["report"].variants
    afresh = folded(convolutions, monkeypatch, fast="folded", remeasure=True)
    assert afresh["report"].published.variant == "folded"
    assert afresh["content"] != first["content"]


@pytest.mark.parametrize("form", VARIANTS)
def test_a_form_that_is_named_has_the_same_bytes_whatever_the_clock_and_the_memory_say(
    form: str, convolutions: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = set()
    for fast in VARIANTS:
        made = folded(convolutions, monkeypatch, form, fast, remeasure=True)
        contents.add(made["content"])
        assert (made["report"].published.variant, made["report"].published.chosen_by) == (form, "request")
    contents.add(folded(convolutions, monkeypatch, fast=form, remeasure=True)["content"])
    assert len(contents) == 1, "asked for or chosen, a form is the same file"


def test_a_batchnorm_stays_in_the_form_in_blocks_and_the_report_and_the_file_say_so(
    convolutions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folded(convolutions, monkeypatch, "blocked")
    report = made["report"]
    assert (report.folding.batchnorms_before, report.folding.batchnorms_after) == (2, 0)
    assert (report.published.variant, report.published.batchnorms) == ("blocked", 1)
    model = onnx.load_model_from_string(made["content"])
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 1
    assert {p.key: p.value for p in model.metadata_props}["normfold.batchnorms"] == "2 before, 1 in the blocked form"


def test_a_form_that_there_is_not_is_refused_with_the_names_of_those_there_are() -> None:
    for form in (AUTO, *VARIANTS):
        check_variant(form)
    with pytest.raises(ExportError, match="there is no form 'lift'; there are unfolded, folded, lifted") as refused:
        check_variant("lift")
    assert all(form in str(refused.value) for form in (AUTO, *VARIANTS))
    assert ("unfolded", "folded", *REWRITES, *REFOLDS) == VARIANTS


def test_a_form_that_this_network_has_not_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(identity())
    origin = open_onnx(tmp_path / "net.onnx", parse_inputs(()), opset=None)
    with pytest.raises(ExportError, match=r"this network has no lifted form: .* It has the forms unfolded, folded"):
        fold_and_prove(origin, (), "net", 18, variant="lifted")


def test_where_a_form_is_another_network_nothing_is_published(
    convolutions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: variants.ir.Model) -> bool:
        weight = model.graph.initializers["w1"]
        assert weight.const_value is not None
        weight.const_value = holding(weight.const_value.numpy() * np.float32(1.01), weight.const_value, weight.name)
        return True

    monkeypatch.setitem(REWRITES, "lifted", wrong)
    for asked in ("lifted", AUTO, "folded"):
        with pytest.raises(VerificationError, match="the lifted graph is not the same network, so nothing was publish"):
            folded(convolutions, monkeypatch, asked)
    report = folded(convolutions, monkeypatch, "unfolded")["report"]  # as the message advises
    assert report.published.variant == "unfolded"
    assert any(n.startswith("the lifted form was left out: the lifted graph is not the same") for n in report.notes)


def test_a_form_that_rounds_worse_is_left_out_and_published_only_where_it_is_asked_for(
    convolutions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Proof.of

    def rounding_worse(proof: Proof, graph: Graph) -> Proved:
        proved = of(proof, graph)
        if graph.content == proof.unfolded.content:
            return proved
        worse = tuple(replace(d, relative=2 * d.bound) for d in proved.rounding.differences)
        return Proved(proved.algebra, replace(proved.rounding, differences=worse))

    monkeypatch.setattr(Proof, "of", rounding_worse)
    report = folded(convolutions, monkeypatch)["report"]
    assert report.published.variant == "unfolded"
    assert "before: published" in str(report)
    assert any(
        "the folded form rounds worse in float32 than the network itself and was left" in n for n in report.notes
    )
    report = folded(convolutions, monkeypatch, "lifted")["report"]
    assert report.published.variant == "lifted"
    assert any("the lifted form rounds worse" in n and "because it was asked for" in n for n in report.notes)


def test_without_float64_a_form_that_rounds_worse_is_refused_where_it_is_asked_for(
    convolutions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Proof.of

    def rounding_worse(proof: Proof, graph: Graph) -> Proved:
        rounding = of(proof, graph).rounding
        return Proved(None, replace(rounding, differences=tuple(replace(d, bound=1e-30) for d in rounding.differences)))

    monkeypatch.setattr(Proof, "of", rounding_worse)
    with pytest.raises(VerificationError, match="cannot be computed in float64 to show that they are the same"):
        folded(convolutions, monkeypatch, "folded")


def test_fold_all_folds_what_stays_by_cost_and_publishes_the_folded_form(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[N, 4, L] x) => (float[N, 4, M] y)
    <float[4,4,1] w = {1,2,3,4, 4,3,2,1, 1,1,2,2, 2,1,2,1}, float[4] g = {1,-2,3,-4}, float[4] b = {1,0,1,0},
     float[4] m = {0,1,0,1}, float[4] v = {1,2,1,2}>
    { c = Conv (x, w) r = Relu (c) n = BatchNormalization (r, g, b, m, v) y = Relu (n) }"""
    source, target = tmp_path / "net.onnx", tmp_path / "out.onnx"
    source.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    left = {}
    for options in ([], ["--fold-all"]):
        arguments = ["fold", str(source), str(target), "--input", "x=FP32[N,4,L]", "--overwrite", "--json", *options]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        left[bool(options)] = report["folding"]["affines_after"]
    assert left == {False: 1, True: 0}
    assert report["published"]["form"] == "folded"


def test_both_commands_name_every_form_in_their_help_and_take_it(
    convolutions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("export", "fold"):
        shown = CliRunner().invoke(main, [command, "--help"]).output
        assert all(form in shown.partition("--form")[2].partition("--remeasure")[0] for form in (AUTO, *VARIANTS)), (
            shown
        )
    target = tmp_path / "out.onnx"
    arguments = ["fold", str(convolutions), str(target), "--overwrite"]
    for options, form, remembered in (
        (["--form", "unfolded", "--remeasure"], "unfolded", False),
        (["--form", "lifted"], "lifted", True),
        (["--form", "lifted", "--remeasure"], "lifted", False),
    ):
        result = CliRunner().invoke(main, [*arguments, *options, "--json"])
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert (report["published"]["form"], report["published"]["chosen_by"]) == (form, "request")
        assert report["timing"]["remembered"] is remembered
        metadata = {p.key: p.value for p in onnx.load(target).metadata_props}
        assert set(json.loads(metadata["normfold.proved"])) == {"schema", "dimensions", "inputs"}
    refused = CliRunner().invoke(main, [*arguments, "--form", "fast"])
    assert refused.exit_code == 1
    assert "there is no form 'fast'" in refused.stderr


@pytest.mark.parametrize("form", VARIANTS)
def test_a_form_with_branches_apart_keeps_the_sum_and_the_metadata(form: str) -> None:
    text = """(float[N,3,L] x) => (float[N,4,L] y) { c = Conv(x, u) s = Sigmoid(c) d = Conv<pads=[1,1]>(s, w)
        n = BN(s, n) a = Add(d, n) r = Relu(a) y = Conv(r, v) }"""
    proto = graph(text, u=weights(8, 3, 1), w=weights(8, 8, 3), v=weights(4, 8, 1), **norm("n", 8))
    model = unrounded(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))
    assert model is not None
    unfolded = Graph.of(model)
    assert fold(model).sums_removed == 1
    model.metadata_props.update({"normfold.form": form, "normfold.batchnorms": "1 before, 0 after folding"})
    apart = branches_apart(unfolded, Graph.of(model), form)
    assert (apart is None) == (form == "unfolded")
    if apart is not None:
        written = onnx.load_model_from_string(apart.content)
        assert operators(written).count("Add") == 1
        found = {p.key: p.value for p in written.metadata_props}
        assert found == {"normfold.form": form, "normfold.batchnorms": "1 before, 0 with branches apart"}
        ranks = {len(t.dims) for t in written.graph.initializer if t.name in ("u", "w", "v")}
        assert ranks <= ({3} if form == "folded" else {4})
        x = {"x": np.random.default_rng(0).standard_normal((2, 3, 9)).astype(np.float32)}
        want, got = (Runtime(c, optimised=False).run(x)["y"] for c in (unfolded.content, apart.content))
        assert np.abs(got - want).max() < 1e-5
