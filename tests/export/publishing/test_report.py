"""The JSON and the HTML of a report hold all of its values, and no text in it can break out of the page."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import onnx
import onnx_ir as ir
import pytest
from rich.console import Console

from normfold.cli.exporting import print_report
from normfold.export.calibration.rows import DataSet
from normfold.export.fold import Fold, FoldReport
from normfold.export.forms.machine import Machine
from normfold.export.forms.measure import TimeComparison
from normfold.export.forms.precision import PrecisionReport
from normfold.export.forms.variants import Variant
from normfold.export.proof.verify import Difference, Verification
from normfold.export.publishing.graph_picture import boxes, drawing
from normfold.export.publishing.html_report import as_html
from normfold.export.publishing.report import ExportReport, Published, as_json, chosen, columns, labels_kept
from normfold.export.publishing.summary import as_text

DIFFERENCE = Difference("y", "random", 12, 1e-6, 1e-7, 2e-7, 0.0, 5e-7, 0.99)
REPORT = ExportReport(
    model="surnames",
    version=3,
    path="repository/surnames/3",
    source="mynets.py:Net",
    source_sha256="ab" * 32,
    weights="w.safetensors",
    weights_sha256="cd" * 32,
    inputs=("x=FP32[N,77,L]",),
    outputs=("y=FP32[N,18]",),
    opset=18,
    folding=FoldReport(
        folds=(
            Fold("bn1", "BatchNorm", True, "forward into 'conv2'"),
            Fold("<script>alert(1)</script>", "BatchNorm", False, "", ("its reader is a sigmoid",)),
        ),
        batchnorms_before=2,
        batchnorms_after=1,
    ),
    published=Published("folded", 1, 30, 900),
    bytes_before=2000,
    bytes_after=1500,
    verification=Verification((DIFFERENCE,), "PyTorch, float64", ("N=2 L=32", "one.npy")),
    timing=TimeComparison(0.2, 0.1, 50, "x[1,77,32]"),
    machine=Machine("Some CPU", "1.32.0", ("CPUExecutionProvider",), 1),
    sha256="ef" * 32,
    versions={"torch": "2.13.0"},
    notes=("a <note> & more",),
    variants=(Variant("unfolded", 2000, 0.2, False), Variant("folded", 1500, 0.1, True)),
    precision=PrecisionReport(
        "int8",
        Verification((replace(DIFFERENCE, relative=0.03, bound=0.2, rows=75),), "r", ()),
        TimeComparison(0.1, 0.05, 9, "x"),
        1500,
        500,
        60,
        3,
        950,
        DataSet("sample", 75, "the rows between them, of 'a.npy'"),
        DataSet("sample", 74, "every second row of 'a.npy'"),
    ),
)
#: The same network in float32.
FULL = replace(REPORT, precision=None)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (400, 1280)
#: Loads the page in a frame of each width and writes what it measured into the document.
HOST = """<!doctype html><body>{frames}<pre id="measured"></pre><script>
addEventListener("load", () => {{
  document.getElementById("measured").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(f => {{
    const page = f.contentDocument, sheet = f.contentWindow.getComputedStyle(page.querySelector(".good"));
    const outside = [...page.querySelectorAll("body *")].filter(
      e => !e.closest(".wide table, .wide .pair") && e.getBoundingClientRect().right > f.clientWidth + 1);
    return {{width: f.clientWidth, needs: page.documentElement.scrollWidth, outside: outside.length,
             good: sheet.color, resources: f.contentWindow.performance.getEntriesByType("resource").length}};
  }}));
}});
</script></body>"""


class Page(HTMLParser):
    """Checks that every element that is opened is closed in its place, and keeps the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def table_rows(page: str, title: str) -> dict[str, list[str]]:
    """Return the rows of the table whose first column has this title, by first cell, without mark-up."""
    table = page[page.index(f"<th>{title}</th>") :].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*)</tr>", table)]
    plain = [[re.sub(r"<[^>]*>", "", cell) for cell in row] for row in rows if row]
    return {row[0]: row[1:] for row in plain}


def test_table_and_page_say_what_was_done_for_int8() -> None:
    assert REPORT.precision is not None
    done = replace(REPORT.precision, equalised=("a", "b"), apart=True, corrected=True, kept=("c", "d"))
    report = replace(REPORT, precision=done)
    text, page = as_text(report), as_html(report)
    assert "  equalised: the output channels of 2 layers were scaled to equal ranges\n" in text
    assert "  apart: branches beside convolutions stay sums, because int8 loses less so\n" in text
    assert "  corrected: biases make up for the mean error of rounding\n" in text
    assert "  in float32, because int8 loses most there: c, d\n" in text
    assert (
        "the output channels of 2 layers were scaled to equal ranges, and the next layers scale them back: a, b."
        in page
    )
    assert "Apart: branches beside convolutions stay sums, because int8 loses less so." in page
    assert "Corrected: biases make up for the mean error of rounding." in page
    assert "In float32, because int8 loses most there: c, d." in page
    text, page = as_text(REPORT), as_html(REPORT)
    for word in ("equalised", "apart:", "corrected", "in float32, because"):
        assert word not in text.lower()
        assert word not in page.lower()
    fields = as_json(report)["precision"]
    assert fields["apart"]
    assert (list(fields["equalised"]), fields["corrected"], list(fields["kept"])) == (["a", "b"], True, ["c", "d"])


def test_the_page_is_well_formed_stands_alone_and_shows_every_fold_and_figure() -> None:
    page = as_html(REPORT)
    parsed = Page(page)
    for shown in ("forward into 'conv2'", "its reader is a sigmoid", "the same network", "2.0e-07", "0.100 ms", "int8"):
        assert shown in parsed.text, shown
    for outside in ("http:", "https:", "src=", "@import", "url("):
        assert outside not in page


def test_of_a_batchnorm_that_went_in_part_both_parts_are_told() -> None:
    part = Fold("bn1", "BatchNorm", False, "forward into 'conv2'", ("back and 1 more way: gamma of both signs",))
    report = replace(REPORT, folding=replace(REPORT.folding, folds=(part,)))
    text = Page(as_html(report)).text
    assert "partly folded" in text
    assert part.how in text
    assert part.reason in text
    console = Console(file=io.StringIO(), width=200, highlight=False, soft_wrap=True)
    print_report(report, console, "")
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"  bn1: {part.how}; the rest is not folded: {part.reason}\n" in printed
    assert "what stays of a BatchNorm may be a Mul or an Add; the number of BatchNorms above" in printed
    assert "what stays of a BatchNorm" not in str(REPORT)


def test_what_is_no_batchnorm_says_so_and_the_calls_of_one_module_have_numbers() -> None:
    call, scale = Fold("bn", "BatchNorm", True, "back into 'c'"), Fold("mul_1", "affine", True, "it changed nothing")
    report = replace(REPORT, folding=replace(REPORT.folding, folds=(call, scale, call)))
    rows = [call.how, "bn (1 of 2)", "mul_1 (Mul or Add by constants)", "bn (2 of 2)"]
    for text in (str(report), str(report.folding), Page(as_html(report)).text):
        assert all(row in text for row in rows)


def test_names_from_a_network_cannot_break_out_of_the_page() -> None:
    page = Page(as_html(REPORT))
    assert "script" not in page.tags
    assert "note" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_where_another_form_is_published_the_figures_say_of_which_form_they_are() -> None:
    slower = (Variant("unfolded", 2000, 0.1, True), Variant("folded", 1500, 0.2, False))
    unfolded = replace(
        REPORT,
        published=Published("unfolded", 2, 31, 910),
        variants=slower,
        precision=None,
        bytes_after=2000,
        timing=TimeComparison(0.1, 0.1, 9, "x"),
    )
    text = Page(as_html(unfolded)).text
    assert "2 BatchNorms: folding takes 1 of them out, but the unfolded form is the faster one" in text
    assert set(table_rows(as_html(unfolded), "form")) == {"unfolded published", "folded"}
    assert "0 after folding" not in text
    lifted = replace(
        REPORT,
        published=Published("lifted", 1, 44, 900),
        variants=(*REPORT.variants[:1], Variant("folded", 1500, 0.15, False), Variant("lifted", 1600, 0.1, True)),
        precision=None,
    )
    assert "2 BatchNorms before, 1 after folding" in Page(as_html(lifted)).text
    rows = table_rows(as_html(lifted), "form")
    assert rows["lifted published"] == ["0.100 ms", "1,600", "1", "44", "900"]
    assert rows["folded"][:2] == ["0.150 ms", "1,500"]


@pytest.mark.parametrize(
    ("variant", "precision", "titles"),
    [
        ("lifted", REPORT.precision, ["before", "folded", "lifted, float32", "int8: published"]),
        ("lifted", None, ["before", "folded", "lifted: published"]),
        ("unfolded", REPORT.precision, ["unfolded, float32", "folded", "int8: published"]),
        ("unfolded", None, ["before: published", "folded"]),
        ("folded", REPORT.precision, ["before", "folded, float32", "int8: published"]),
        ("folded", None, ["before", "after"]),
    ],
)
def test_the_published_column_has_the_figures_of_the_file_that_is_published(
    variant: str, precision: PrecisionReport | None, titles: list[str]
) -> None:
    report = replace(REPORT, published=Published(variant, 1, 44, 900), precision=precision)
    shown = columns(report)
    assert [column.title for column in shown] == titles
    if precision is not None:
        assert (shown[-1].bytes, shown[-1].median_ms, shown[-1].nodes) == (500, 0.05, 60)
        assert (shown[-1].batchnorms, shown[-1].parameters) == (3, 950)


def printed(report: ExportReport) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False, soft_wrap=True)
    print_report(report, console, "")
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def headline(page: str) -> str:
    """The text between the title and the first table."""
    return page[page.index("<h1>") : page.index("<h2>The forms of the network</h2>")]


def test_the_headline_is_about_the_file_that_is_published() -> None:
    fewer = headline(as_html(REPORT))
    assert "<b>published in int8</b>" in fewer
    assert '<span class="good">within 3.00% of the output\'s scale</span> on 75 sample rows' in fewer
    assert "same label on 74 of 75 rows (99.0%)" in fewer
    assert "the same results" not in fewer
    assert "the same function" not in fewer
    full = headline(as_html(replace(REPORT, precision=None)))
    assert '<span class="good">the same results</span>' in full
    assert "published in" not in full
    assert "published file is not the same function" in as_html(REPORT)


def test_page_table_and_json_name_both_sets_of_inputs_and_give_the_warnings() -> None:
    assert REPORT.precision is not None
    calibration, measured = "74 rows: every second row of 'a.npy'", "75 rows: the rows between them, of 'a.npy'"
    text = Page(as_html(REPORT)).text
    assert f"Calibrated on {calibration}." in text
    assert f"Measured on {measured}." in text
    table = printed(REPORT)
    assert f"  calibrated on {calibration}\n  measured on {measured}\n" in table
    assert "same label on 74 of 75 rows (99.0%)" in table
    assert "warning" not in table
    content = json.loads(json.dumps(as_json(REPORT)))["precision"]
    assert (content["calibration"]["rows"], content["measured"]["rows"]) == (74, 75)
    warned = replace(REPORT, precision=replace(REPORT.precision, warnings=("measured on [3] rows only",)))
    assert "warning: measured on [3] rows only\n" in printed(warned)
    page = as_html(warned)
    assert "Warning</span>: measured on [3] rows only." in page
    assert '<span class="bad">within 3.00%' in headline(page)
    assert json.loads(json.dumps(as_json(warned)))["precision"]["warnings"] == ["measured on [3] rows only"]


def test_labels_of_a_few_rows_are_counted_and_those_of_one_are_not_shown() -> None:
    assert labels_kept(replace(DIFFERENCE, label_agreement=1.0, rows=12)) == "12 of 12 rows"
    assert labels_kept(replace(DIFFERENCE, label_agreement=0.75, rows=12)) == "9 of 12 rows"
    assert labels_kept(replace(DIFFERENCE, label_agreement=1.0, rows=32)) == "32 of 32 rows (100.0%)"
    assert labels_kept(replace(DIFFERENCE, label_agreement=None, rows=1)) == ""


def test_every_form_that_was_timed_stands_in_one_table_with_what_is_known_of_it() -> None:
    three = (*FULL.variants, Variant("lifted", 1600, 0.15, False))
    page = as_html(replace(FULL, variants=three))
    assert len(re.findall("<td><abbr[^>]*>unfolded</abbr>", page)) == 1
    assert table_rows(page, "form") == {
        "unfolded": ["0.200 ms", "2,000", "2", "0", "0"],
        "folded published": ["0.100 ms", "1,500", "1", "30", "900"],
        "lifted": ["0.150 ms", "1,600", "–", "–", "–"],
    }


def test_columns_have_titles_and_figures_stand_at_the_right() -> None:
    page = as_html(REPORT)
    assert "<th>layer</th><th>outcome</th><th>where to, or why not</th>" in page
    for figure in ("2.0e-07", "99.0%", "1,500", "900"):
        cells = re.findall(rf"<td([^>]*)>(?:[^<]*)?{re.escape(figure)}", page)
        assert set(cells) == {" class=n"}, figure


@pytest.mark.parametrize("form", ["unfolded", "lifted"])
def test_a_folded_form_that_was_left_out_has_no_column(form: str) -> None:
    report = replace(
        REPORT, published=Published(form, 2, 31, 910), precision=None, variants=(Variant(form, 9, 1, True),)
    )
    titles = [column.title for column in columns(report)]
    assert titles == (["before: published"] if form == "unfolded" else ["before", "lifted: published"])
    assert "BatchNorms" in str(report)
    assert form in Page(as_html(report)).text


def test_the_report_says_which_form_was_chosen_by_whom_and_when_it_was_timed() -> None:
    asked = Published("lifted", 1, 44, 900, "request")
    remembered = replace(FULL.timing, remembered=True, free=("L", "M"))
    where, measured = "on Some CPU, onnxruntime 1.32.0, 1 thread", "at x[1,77,32] measured now"
    said = {
        f"the folded form is published, no other form is clearly faster; run times {measured}, {where}": FULL,
        f"the lifted form is published, as it was asked for; run times {measured}, {where}": replace(
            FULL, published=asked
        ),
        "the unfolded form is published, the fastest of 2 forms; run times at x[1,77,32] (at another size: "
        "--time-at L=SIZE, M=SIZE, or a --sample of that size) remembered from an earlier export of it "
        f"(--remeasure measures them again), {where}": replace(
            FULL, published=Published("unfolded", 2, 31, 910), timing=remembered
        ),
    }
    for sentence, report in said.items():
        assert chosen(report) == sentence
    assert "The folded form is published, no other form is clearly faster" in Page(as_html(FULL)).text
    assert chosen(REPORT).startswith("the folded form is published in int8, no other form")
    content = as_json(replace(FULL, published=asked, timing=remembered))
    assert (content["published"]["chosen_by"], content["timing"]["remembered"]) == ("request", True)
    assert content["machine"]["processor"] == "Some CPU"


def test_str_and_a_notebook_show_what_the_command_prints() -> None:
    terminal = io.StringIO()
    print_report(REPORT, Console(file=terminal, highlight=False, soft_wrap=True, width=160), "normfold serve")
    printed = [line.rstrip() for line in terminal.getvalue().splitlines()]
    assert printed[-1] == "next: normfold serve"
    shown = str(REPORT)
    assert [line.rstrip() for line in shown.splitlines()] == printed[:-1]
    assert len(printed) < 25
    assert "\x1b" not in shown
    page = REPORT._repr_html_()
    assert Page(page).text.splitlines()[0] == shown.splitlines()[0].rstrip()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_failed_proof_is_shown_as_one() -> None:
    failed = replace(FULL, verification=replace(FULL.verification, differences=(replace(DIFFERENCE, relative=1.0),)))
    text = Page(as_html(failed)).text
    assert "other results within float32's rounding" in text
    text = Page(as_html(replace(FULL, algebra=failed.verification))).text
    assert "not the same function in float64" in text
    assert "failed" in text


def test_the_json_form_is_plain_json_with_the_derived_figures() -> None:
    content = json.loads(json.dumps(as_json(REPORT), allow_nan=False))
    assert content["verification"]["passed"] is True
    assert content["verification"]["differences"][0]["ratio"] is None, "an error over no error is no number"
    assert content["folding"]["folds"][1]["reason"] == "its reader is a sigmoid"
    assert content["timing"]["ratio"] == 0.5
    assert content["precision"]["bytes_after"] == 500
    assert (content["version"], content["published"]["form"]) == (3, "folded")
    unpublished = as_json(replace(REPORT, version=0, path=""))
    assert "version" not in unpublished, "0 is no version"
    assert "path" not in unpublished


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_the_page_fits_a_wide_window_and_a_phone_and_asks_for_nothing_else(tmp_path: Path) -> None:
    path = "encoder.layers.3.blocks.12.depthwise_separable_convolution.batch_normalisation"
    folds = (*REPORT.folding.folds, Fold(path, "BatchNorm", True, f"back into '{path}'"))
    page = as_html(replace(REPORT, folding=replace(REPORT.folding, folds=folds)))
    frames = "".join(
        f'<iframe width="{w}" height="900" frameborder="0" srcdoc="{escape(page)}"></iframe>' for w in WIDTHS
    )
    (tmp_path / "host.html").write_text(HOST.format(frames=frames))
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--no-first-run", "--disable-background-networking"]
    command += ["--window-size=1800,1000", "--dump-dom", (tmp_path / "host.html").as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="measured">(.+?)</pre>', dumped.stdout)
    assert found, dumped.stderr[-2000:]
    measured = json.loads(unescape(found[1]))
    assert [m["width"] for m in measured] == list(WIDTHS)
    for frame in measured:
        assert frame["needs"] <= frame["width"], frame
        assert frame["outside"] == 0, frame
        assert frame["resources"] == 0, frame
        assert frame["good"] != "rgb(0, 0, 0)", "the style of the page is in force"


def test_a_file_whose_batchnorms_came_as_mul_and_add_has_affines() -> None:
    fold = Fold("scale", "affine", True, "back into 'conv1'")
    folding = FoldReport(folds=(fold,), affines_before=17, affines_after=0)
    text = Page(as_html(replace(FULL, folding=folding, published=replace(FULL.published, batchnorms=0)))).text
    assert "17 affines before (BatchNorms that came as Mul and Add), 0 after folding" in text
    assert "Where each affine went" in text
    assert "0 BatchNorms" not in text


def test_a_number_and_its_unit_stay_on_one_line_of_a_narrow_screen() -> None:
    assert "td.n { white-space: nowrap; }" in as_html(REPORT)


def test_the_longest_time_has_the_longest_bar_and_bars_share_a_scale() -> None:
    assert re.findall(r'class="bar" style="width:([0-9.]+)%"', as_html(REPORT)) == ["100.00", "50.00"]


BRANCHES = """<ir_version: 9, opset_import: ["": 18]>
    g (float[N,2,8] x) => (float[N,6,8] y) <float[2] one = {1, 1}, float[2] zero = {0, 0}> {
        [bn1] b = BatchNormalization (x, one, zero, zero, one)
        [left] l = Relu (b)
        [right] r = Neg (b)
        [far] f = Abs (b)
        y = Concat <axis = 1> (l, r, f)
    }"""


def test_branches_are_drawn_beside_each_other_and_batchnorms_have_numbers() -> None:
    graph = ir.from_proto(onnx.parser.parse_model(BRANCHES)).graph
    folds = (Fold("bn1", "BatchNorm", False, ""),)
    found = boxes(graph, folds)
    assert [(box.kind, box.reads) for box in found] == [
        ("norm", ()),
        ("clamp", (0,)),
        ("other", (0,)),
        ("other", (0,)),
        ("other", (1, 2, 3)),
    ]
    svg = drawing(found, {"bn1": "1"})
    ElementTree.fromstring(svg)
    corners = re.findall(r'<rect x="([0-9.]+)" y="([0-9.]+)" width="158"', svg)
    rows = [float(y) for _, y in corners]
    assert rows[1] == rows[2] == rows[3] > rows[0]
    assert len({x for x, _ in corners[1:4]}) == 3
    assert corners[0][0] == corners[4][0], "what is alone in its row stands in the middle"
    assert svg.count('class="number"') == 1


def test_the_page_draws_both_graphs_unless_they_are_too_large(monkeypatch) -> None:
    model = onnx.parser.parse_model(BRANCHES).SerializeToString()
    page = as_html(REPORT, model, model)
    assert page.count("<svg") == 2
    assert "before: as it was captured" in Page(page).text
    assert "http:" not in page
    monkeypatch.setattr("normfold.export.publishing.graph_picture.MOST_NODES", 4)
    assert "<svg" not in as_html(REPORT, model, model)


def test_the_outcome_of_each_batchnorm_is_said_to_be_that_of_the_folded_form():
    blocked = replace(REPORT, published=Published("blocked", 1, 30, 900))
    said = "the blocked form keeps 1 BatchNorm, because it runs faster with it; --form folded publishes the folded form"
    assert said in as_text(blocked)
    assert "the following" not in as_text(REPORT)
    assert said[1:] in unescape(as_html(blocked))
    assert "the following" not in unescape(as_html(REPORT))


def test_where_the_folded_form_was_left_out_nobody_is_told_to_ask_for_it():
    left = replace(REPORT, published=Published("unfolded", 2, 30, 900), variants=(Variant("unfolded", 9, 1, True),))
    text = as_text(left)
    assert "the only form that was not left out" in text
    assert "because the folded form was left out (see the notes)" in text
    assert "--form folded" not in text
