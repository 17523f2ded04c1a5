"""``normfold fold``: the report beside the file, and the size at which the forms are timed."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from normfold.cli.main import main

TEXT = """<ir_version: 8, opset_import: ["" : 18]>
g (float[N, 2, L] x) => (float[N, 2, M] y)
<float[2,2,1] w = {1,2,3,4}, float[2] g = {1,-2}, float[2] b = {1,0}, float[2] m = {0,1}, float[2] v = {1,2}>
{ c = Conv (x, w) y = BatchNormalization (c, g, b, m, v) }"""


@pytest.fixture
def folded(tmp_path: Path):
    source = tmp_path / "net.onnx"
    source.write_bytes(onnx.parser.parse_model(TEXT).SerializeToString())
    return lambda target, *options: CliRunner().invoke(main, ["fold", str(source), str(target), *options])


def test_a_report_replaces_nothing_that_was_not_meant(folded, tmp_path):
    out, report = tmp_path / "out.onnx", tmp_path / "out.json"
    report.write_text("mine")
    done = folded(out, "--report", "json")
    assert (done.exit_code, report.read_text(), out.exists()) == (1, "mine", False)
    assert "out.json' exists; give another name for OUT.onnx, or --overwrite" in " ".join(done.output.split())
    done = folded(tmp_path / "out.html", "--report", "html")
    assert (done.exit_code, (tmp_path / "out.html").exists()) == (1, False)
    assert "out.html' is no name that verify and serve take for a graph" in done.stderr
    assert folded(out, "--report", "json", "--overwrite").exit_code == 0
    assert json.loads(report.read_text())["folding"]["batchnorms_after"] == 0


def test_a_report_with_numbers_that_json_lacks_is_json(folded, tmp_path, monkeypatch):
    from normfold.export.publishing import report as reports

    monkeypatch.setattr(reports, "as_json", lambda report: {"error": float("nan")})
    assert folded(tmp_path / "out.onnx", "--report", "json").exit_code == 0
    assert json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail) == {"error": "NaN"}


def test_a_file_that_came_while_the_fold_ran_is_kept_without_overwrite(folded, tmp_path, monkeypatch):
    from normfold.export import onnx_fold

    out, fold_and_prove = tmp_path / "out.onnx", onnx_fold.fold_and_prove

    def beside_another(*arguments, **options):
        out.write_text("another's")
        return fold_and_prove(*arguments, **options)

    monkeypatch.setattr(onnx_fold, "fold_and_prove", beside_another)
    done = folded(out, "--form", "folded")
    assert (done.exit_code, out.read_text()) == (1, "another's")
    assert "out.onnx' was written by another program meanwhile; give another name, or --overwrite" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "out.onnx"]
    assert folded(out, "--form", "folded", "--overwrite").exit_code == 0
    assert out.read_bytes() != b"another's"


def test_a_link_that_leads_nowhere_is_refused_before_the_work(folded, tmp_path):
    for name, options in (("out.onnx", ()), ("report.json", ("--report", "json"))):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
        done = folded((tmp_path / name).with_suffix(".onnx"), *options)
        assert (done.exit_code, (tmp_path / name).is_symlink()) == (1, True)
        assert f"{name}' exists; give another name" in done.stderr


@pytest.mark.parametrize("name", ["out", "weights.pt"])
def test_a_graph_has_a_name_with_onnx(folded, tmp_path, name):
    (tmp_path / "weights.pt").write_text("mine")
    done = folded(tmp_path / name, "--overwrite")
    assert (done.exit_code, (tmp_path / "weights.pt").read_text(), (tmp_path / "out").exists()) == (1, "mine", False)
    assert f"is no name that verify and serve take for a graph: write '{tmp_path / name}.onnx'" in done.stderr


def test_a_report_that_cannot_be_written_does_not_hide_the_graph(folded, tmp_path):
    (tmp_path / "out.json").mkdir()
    done = folded(tmp_path / "out.onnx", "--report", "json", "--overwrite")
    assert (done.exit_code, (tmp_path / "out.onnx").exists()) == (1, True)
    assert "out.json': Is a directory; " in done.output
    assert "out.onnx' is written" in done.output


def test_the_forms_are_timed_at_the_size_that_is_asked_for(folded, tmp_path):
    done = folded(tmp_path / "out.onnx", "--time-at", "L=77", "--form", "folded")
    assert done.exit_code == 0, done.output
    assert "run times at x[1,2,77]" in " ".join(done.output.split())


@pytest.mark.parametrize("name", ["b\udcfftes", "tit\x1ble"])
def test_a_name_may_be_bytes_that_are_no_text(tmp_path, name):
    source, out = tmp_path / f"{name}.onnx", tmp_path / f"{name}.out.onnx"
    source.write_bytes(onnx.parser.parse_model(TEXT).SerializeToString())
    options = ("--form", "folded", "--report", "html")
    done = CliRunner(charset="utf-8").invoke(main, ["fold", str(source), str(out), *options])
    assert done.exit_code == 0, done.output
    assert onnx.load(out).graph.name.isprintable()
    assert "BatchNorm" in out.with_suffix(".html").read_text("utf-8")
