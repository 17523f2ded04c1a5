"""``torch.export`` programs: exported with the same proof, and checked before torch opens them."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from normfold.cli.main import main
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.errors import InputSpecError, SourceError
from normfold.export.inputs.specs import parse_inputs
from normfold.export.sources.module_origin import exact
from normfold.export.sources.opening import open_origin
from normfold.export.sources.origin import Request
from normfold.export.sources.program_guards import guard_of
from normfold.export.sources.program_origin import open_program
from normfold.export.sources.program_texts import faults

Change = Callable[[str, bytes], bytes]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.BatchNorm1d(4), nn.Conv1d(4, 2, 1)).eval()
    dynamic = torch.export.Dim.DYNAMIC
    exported = torch.export.export(network, (torch.randn(2, 3, 9),), dynamic_shapes=({0: dynamic, 2: dynamic},))
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    torch.export.save(exported, path)
    return path


def test_a_program_is_exported_folded_and_proved(program: Path, directory: Path) -> None:
    result = CliRunner().invoke(main, ["export", str(program), "--repository", "repository", "--name", "net", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["folding"]["batchnorms_after"] == 0
    assert report["inputs"] == ["input=FP32[N:1..,3,L:3..]"]
    assert report["verification"]["reference"] == "PyTorch, float64"


def test_its_inputs_and_dimensions_can_be_named(program: Path) -> None:
    origin = open_program(program, parse_inputs(["signal=FP32[batch:1..8,3,time:5..]"]))
    assert str(origin.specs[0]) == "signal=FP32[batch:1..8,3,time:5..]"
    assert origin.run({"signal": np.zeros((1, 3, 7), np.float32)})["output"].shape == (1, 2, 5)
    with pytest.raises(InputSpecError, match="was captured with"):
        open_program(program, parse_inputs(["signal=FP32[N,4,L]"]))
    with pytest.raises(InputSpecError, match=r"takes 1 input \(.*\), but the description has"):
        open_program(program, parse_inputs(["a=FP32[N,3,L]", "b=FP32[N]"]))


class Apart(nn.Module):
    """An image of any height and width, and rows of any number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, image: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv(image), rows * 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["image=FP32[N,3,L,L2]", "rows=FP32[N2,4]"]),
        (["i=FP32[4,3,5,6]", "r=FP32[N,4]"], ["i=FP32[N2,3,L,L2]", "r=FP32[N,4]"]),
        (["i=FP32[N,3,L2,6]", "r=FP32[5,4]"], ["i=FP32[N,3,L2,L]", "r=FP32[N2,4]"]),
    ],
)
def test_dimensions_that_are_independent_have_names_of_their_own(
    given: list[str], expected: list[str], tmp_path: Path
) -> None:
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic})
    exported = torch.export.export(Apart(), (torch.randn(4, 3, 5, 6), torch.randn(7, 4)), dynamic_shapes=shapes)
    path = tmp_path / "net.pt2"
    torch.export.save(exported, path)
    assert [str(spec) for spec in open_program(path, parse_inputs(given)).specs] == expected


def test_a_size_may_be_a_multiple_of_another(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), nn.AvgPool1d(2)).eval()
    half = torch.export.Dim("half", min=2, max=64)
    exported = torch.export.export(network, (torch.randn(2, 3, 8),), dynamic_shapes=({2: 2 * half},))
    torch.export.save(exported, tmp_path / "net.pt2")
    origin = open_program(tmp_path / "net.pt2", ())
    assert str(origin.specs[0]) == "input=FP32[2,3,L:4..128]"
    graph = origin.graph(origin.specs, {"L": 8}, 18).graph
    assert [str(size) for size in graph.inputs[0].shape or ()] == ["2", "3", "L"]


def rewritten(path: Path, target: Path, change: Change, extra: dict[str, bytes]) -> Path:
    """Copy the archive with each entry's content changed and others added."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
        for name, content in extra.items():
            new.writestr(name, content)
    return target


def swap(old: bytes, new: bytes) -> Change:
    return lambda name, content: content.replace(old, new) if name.endswith("model.json") else content


def keep(name: str, content: bytes) -> bytes:
    return content


class Evil:
    """Makes a directory when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (os.mkdir, (str(self.marker),))


HOSTILE = {  # a part of the description is another text, or there is another entry
    "operator": (swap(b"torch.ops.aten.relu.default", b"torch.os.system"), "no torch operator"),
    "call": (swap(b"Symbol('", b"__import__('os').system('id') or Symbol('"), "not arithmetic"),
    "attribute": (swap(b'"expr_str": "Symbol(', b'"expr_str": "Symbol.mro('), "not arithmetic"),
    "name": (swap(b'"expr_str": "Symbol(', b'"expr_str": "eval('), "not arithmetic"),
    "guard": (swap(b") != 1", b") != __import__('os').system('id')"), "guard .* is not arithmetic"),
    "guard's text": (swap(b"L['input']", rb"""L[\"input'+y()\"]"""), "guard .* is not arithmetic"),
    "function in brackets": (swap(b'"expr_str": "', b'"expr_str": "(eval)((chr)(49)) + '), "not arithmetic"),
    "function of Python": (swap(b"torch.ops.aten.relu.default", b"_operator.attrgetter"), "no torch operator"),
    "method of a namespace": (swap(b"torch.ops.aten.relu.default", b"torch.ops.aten.__init__"), "no torch operator"),
    "operator that reads a file": (
        swap(b"torch.ops.aten.relu.default", b"torch.ops.aten.from_file.default"),
        "no torch operator",
    ),
    "assignment": (swap(b'"name": "relu"', b'"name": "torch.load"'), "holds the name"),
    "input": (swap(b'"input"', b'"input=__import__(1)"'), "holds the name"),
    "weight": (swap(b'"0.weight"', b'"0.x\'+y()"'), "holds the name"),
    "keyword": (swap(b'"name": "bias"', b'"name": "bias=y()"'), "holds the name"),
    "net/data/sample_inputs/more.pt": (keep, "runs code"),
    "net/data/constants/more.pt": (keep, "runs code"),
    "net/data/weights/model.pt": (keep, "runs code"),  # of pickle's first protocol, which begins with any byte
    "net/data/constants/opaque_obj_0": (keep, "compiled or custom code"),
    "net/models/of.JSON": (keep, "not arithmetic"),
    "net/models/extra/model.json": (keep, "not arithmetic"),
    "net/data/aotinductor/model.so": (keep, "compiled or custom code"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_program_that_would_run_code_when_opened_is_refused_unopened(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(torch.export, "load", lambda *a, **k: pytest.fail("torch opened it"))
    change, expected = HOSTILE[what]
    marker, zipped = tmp_path / "ran", io.BytesIO()
    torch.save(Evil(marker), zipped)
    content = zipped.getvalue() if "constants" in what else pickle.dumps(Evil(marker), 0 if "weights" in what else 2)
    if "models" in what:
        content = b'{"tensor_values": {"metadata": {"expr_str": "y()"}}}'
    extra = {what: content} if "/" in what else {}
    path = rewritten(program, tmp_path / "net.pt2", change, extra)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing but the one message
        with pytest.raises(SourceError, match=expected):
            open_program(path, ())
    assert not marker.exists()


def test_a_file_that_is_another_archive_for_torch_is_refused(program: Path, tmp_path: Path) -> None:
    """Python looks for the list of entries before the end; torch where the end says that it is."""
    other = rewritten(program, tmp_path / "other.pt2", swap(b"aten.relu", b"aten.tanh"), {}).read_bytes()
    same = rewritten(program, tmp_path / "same.pt2", keep, {}).read_bytes()
    (tmp_path / "net.pt2").write_bytes(other[: other.rindex(b"PK\5\6")] + same)
    reader = torch._C.PyTorchFileReader(str(tmp_path / "net.pt2"))
    assert b"aten.tanh" in reader.get_record("models/model.json")
    with pytest.raises(SourceError, match="other entries for torch than for Python"):
        open_program(tmp_path / "net.pt2", ())


@pytest.mark.parametrize("context", ['[{"__enum__": true, "fqn": "this:A"}]', {"default_factory_module": "this"}])
def test_a_program_that_names_a_module_to_import_is_refused(context: object) -> None:
    structure = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])
    assert list(faults({"out_spec": structure})) == ["imports the module 'this'"]


def call(context: object) -> str:
    keywords = {"type": "builtins.dict", "context": json.dumps(context), "children_spec": []}
    return json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [keywords, keywords]}])


@pytest.mark.parametrize(
    "description",
    [
        {"target": "torch"},  # a module, not a text
        {"as_operator": "math"},
        {"target": "math.factorial"},
        {"target": "torch.ops.aten._print.default"},
        {"target": "torch.ops.aten.warn.default"},
        {"target": "torch.ops.aten.save.default"},
        {"target": "torch.ops.aten.from_file.default"},
        {"target": "torch.ops.aten.manual_seed.default"},
        {"target": "torch.ops.aten._cummax_helper.default"},  # writes outside of its outputs
        {"target": "torch.ops.aten.segment_reduce.default"},
        {"target": "torch.ops.aten.sparse_coo_tensor.indices_size"},
        {"target": "torch.ops.aten.set_.source_Tensor"},
        {"target": "torch.ops.aten.relu.out"},
        {"target": "torch.ops.aten.fbgemm_linear_fp16_weight.default"},
        {"target": "torch.ops.higher_order.print"},
        {"target": "torch.ops.higher_order.flat_apply"},
        {"range_constraints": {"u99999999999999": {}}},  # torch counts that far
        {"range_constraints": {"u9_999_999_999": {}}},
        {"expr_str": "9**9**9**9"},
        {"expr_str": "Pow(Integer(9), Pow(Integer(9), Integer(999)))"},
        {"expr_str": "LShift(Integer(1), Integer(9999999999))"},
        {"expr_str": "Max(eval, 1)"},
        {"expr_str": "Mul(" + ", ".join(["Add(s0, s1, s2)"] * 9) + ")"},  # multiplied out
        {"expr_str": "(s0 + s1 + s2) ** 9"},
        {"expr_str": "Pow(Add(s0, s1, s2), Integer(9))"},
        {"expr_str": "Pow(Add(s0, s1), Add(9, 9))"},
        {"guards_code": ["L['x'].size()[0] != 9**9**9**9"]},
        {"guards_code": ["L['x'].size()[0] << 9999999999 != 0"]},
        {"guards_code": ["1 << L['x'].size()[0] * 9999 != 0"]},
        {"guards_code": ["math.factorial(L['x'].size()[0]) != 2"]},
        {"inputs": [{"as_string": "a' or y() or '"}]},  # torch writes it between quotes into a guard
        {"constant_input": {"name": "mode", "value": {"as_string": "a' or y() or '"}}},
        {"outputs": [{"as_tensor": {"name": "torch"}}]},
        {"outputs": [{"as_tensor": {"name": "\N{MATHEMATICAL BOLD SMALL T}orch"}}]},  # the same name for Python
        {"buffer": {"buffer_name": "__class__.b"}},
        {"in_spec": call({"y=(z)()": 1})},  # keys of a dict that stands for the list of keywords
        {"in_spec": call([["y=z"]])},
        {"out_spec": json.dumps([1, {"type": "builtins.dict", "context": '[{"__enum__": 1, "fqn": "builtins:A"}]'}])},
        {"out_spec": json.dumps([1, {"default_factory_module": "builtins", "default_factory_name": "breakpoint"}])},
    ],
)
def test_texts_that_do_more_than_compute_or_compute_for_ever_are_refused(description: object) -> None:
    assert list(faults(description))


@pytest.mark.parametrize(
    "description",
    [
        {"inputs": [{"name": "self", "arg": {"as_string": "it's any (text)"}}]},
        {"target": "torch.ops.aten.add_.Tensor"},
        {"target": "torch.ops.aten._softmax.default"},
        {"target": "torch.ops.aten.sym_size.int"},
        {"target": "torch.ops.prims.convert_element_type.default"},
        {"target": "torch.ops.higher_order.cond"},
        {"target": "torch.sym_max"},
        {"range_constraints": {"u3": {}, "s53": {}, "2*s53": {}}},
        {"expr_str": "Pow(Symbol('s27', positive=True, integer=True), Integer(2))"},
        {"expr_str": "PowByNatural(Integer(2), Symbol('s0'))"},
        {"expr_str": "Mul(Add(Symbol('s0'), Integer(-2)), Pow(Add(Symbol('s1'), Integer(1)), Integer(2)))"},
        {"guards_code": ["2 ** (L['x'].size()[0] - 1) != 8"]},
    ],
)
def test_texts_of_ordinary_programs_are_taken(description: object) -> None:
    assert list(faults(description)) == []


def test_keywords_are_names_and_keys_of_dicts_any_text(tmp_path: Path) -> None:
    class Keyed(nn.Module):
        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"a, b": batch["x (1)"] + batch["k=3"]}

    batch = {"x (1)": torch.randn(2, 3), "k=3": torch.randn(2, 3)}
    shapes = ({key: {0: torch.export.Dim.DYNAMIC} for key in batch},)
    torch.export.save(torch.export.export(Keyed(), (batch,), dynamic_shapes=shapes), tmp_path / "net.pt2")
    assert [str(spec) for spec in open_program(tmp_path / "net.pt2", ()).specs] == [
        "batch_x__1_=FP32[N,3]",
        "batch_k_3=FP32[N,3]",
    ]
    keywords = {"type": "builtins.dict", "context": '["x (1)"]', "children_spec": []}
    called = {"type": "builtins.tuple", "context": "null", "children_spec": [keywords, keywords]}
    assert list(faults({"in_spec": json.dumps([1, called])})) == ["holds the name 'x (1)', which is none"]


def test_a_damaged_program_is_refused(program: Path, tmp_path: Path) -> None:
    content = program.read_bytes()
    path = tmp_path / "net.pt2"
    for broken in (content[: len(content) // 2], b"", b"hello", content.replace(b"relu", b"ReLu", 1)):
        path.write_bytes(broken)
        with pytest.raises(SourceError):
            open_program(path, ())


def test_weights_that_begin_like_a_pickle_are_numbers_and_a_pickle_among_them_is_still_found(tmp_path: Path) -> None:
    network = nn.BatchNorm1d(128).eval()
    for value in network.state_dict().values():
        value.view(-1).view(torch.uint8)[0] = 0x80
    network.num_batches_tracked.fill_(128)
    path, changed = tmp_path / "net.pt2", tmp_path / "changed.pt2"
    torch.export.save(torch.export.export(network, (torch.randn(2, 128),)), path)
    assert open_program(path, ()).run({"input": np.zeros((2, 128), np.float32)})["output"].shape == (2, 128)
    marker = tmp_path / "ran"

    def evil(name: str, content: bytes) -> bytes:
        return pickle.dumps(Evil(marker)) if name.endswith("weights/weight_0") else content

    def as_pickle(name: str, content: bytes) -> bytes:
        content = evil(name, content)
        return content.replace(b'"use_pickle": false', b'"use_pickle": true') if name.endswith(".json") else content

    with pytest.raises(SourceError, match="runs code"):
        open_program(rewritten(path, changed, as_pickle, {}), ())
    with pytest.raises(SourceError, match="two entries that differ only in upper and lower case"):
        open_program(
            rewritten(path, changed, keep, {"net/data/weights/Weight_0": b"", "net/data/weights/WEIGHT_0": b""}), ()
        )
    with pytest.raises(SourceError, match="cannot be read"):  # as numbers, of the wrong size
        open_program(rewritten(path, changed, evil, {}), ())
    assert not marker.exists()


def test_a_program_that_was_exported_with_keywords_and_dicts_takes_its_tensors_in_order(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def forward(self, x: torch.Tensor, *, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return x + 2 * batch["a"] + 3 * batch["b"]

    x, a, b = torch.randn(3, 2, 3)
    program = torch.export.export(Nested(), (x.clone(),), {"batch": {"a": a.clone(), "b": b.clone()}})
    torch.export.save(program, tmp_path / "net.pt2")
    origin = open_program(tmp_path / "net.pt2", ())
    arrays = {spec.name: np.full((2, 3), n, np.float32) for n, spec in enumerate(origin.specs)}
    np.testing.assert_array_equal(origin.run(arrays)["output"], np.full((2, 3), 0 + 2 * 1 + 3 * 2, np.float32))


def test_files_that_are_no_networks_are_answered_with_how_to_go_on(program: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="TorchScript program, it cannot be captured"):
        open_origin(Request(str(tmp_path / "net.pt")), [])
    with pytest.raises(SourceError, match="holds weights, not a network"):
        open_origin(Request(str(tmp_path / "net.safetensors")), [])
    with pytest.raises(SourceError, match="takes no --weights"):
        open_origin(Request(str(program), weights=tmp_path / "w.pt"), [])
    with pytest.raises(SourceError, match="no file"):
        open_origin(Request(str(tmp_path / "missing.onnx")), [])


def test_the_reason_is_the_first_line_with_words_of_what_torch_says(monkeypatch, tmp_path):
    """Errors of torch._dynamo begin with an empty line."""
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),)), path)

    def fail(*_: object) -> None:
        raise RuntimeError("\n\n  a reason\nand more")

    monkeypatch.setattr(torch.export, "load", fail)
    with pytest.raises(SourceError, match=r"by torch \S+: a reason$"):
        open_program(path, ())


def test_the_note_on_float64_says_the_first_line_with_words():
    class Single(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.weight.dtype is torch.float64:
                raise RuntimeError("\nfloat32 only\n")
            return super().forward(x)

    note = exact(NamedNetwork(Single(2, 2), ["x"]), {"x": np.zeros((1, 2), np.float32)})[2]
    assert note == ("the network does not run in float64 (float32 only); the reference is PyTorch in float32",)


class Sometimes(nn.Module):
    """Doubles its answer at lengths whose remainder is ``rest``, counted from ``-shift``."""

    def __init__(self, divisor: int, rest: int, shift: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))
        self.divisor, self.rest, self.shift = divisor, rest, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return 2 * y if (x.shape[-1] + self.shift) % self.divisor == self.rest else y


def saved(network: nn.Module, inputs: tuple[torch.Tensor, ...], path: Path, axes: tuple[int, ...] = (0, 2)) -> Path:
    shapes = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _ in inputs)
    torch.export.save(torch.export.export(network.eval(), inputs, dynamic_shapes=shapes), path)
    return path


def test_a_program_is_exported_for_the_sizes_that_it_was_captured_for(tmp_path: Path, directory: Path) -> None:
    def export(network: nn.Module, length: int) -> str:
        path = saved(network, (torch.randn(2, 3, length),), tmp_path / "net.pt2")
        arguments = ["export", str(path), "--repository", "repository", "--name", "net", "--form", "folded"]
        return CliRunner().invoke(main, arguments).output

    assert "seen to take L in steps of 2: 4, 6, 8" in export(Sometimes(2, 1), 8)
    assert "seen to take L in steps of 2: 3, 5, 7" in export(Sometimes(2, 1), 9)
    assert "at L = 60 the network refuses its input" in export(Sometimes(30, 0), 8)
    assert "while ((5 + L) % 6) != 0: at L = 37 the network refuses its input" in export(Sometimes(6, 0, 5), 9)


def test_a_program_of_several_inputs_refuses_sizes_at_which_it_is_another_network(tmp_path: Path) -> None:
    class Longer(nn.Module):
        def forward(self, x: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            longer = x.shape[-1] > batch["y"].shape[-1]
            return x.mean(-1) - batch["y"].mean(-1) if longer else x.mean(-1)

    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        Longer(), (torch.randn(2, 9), {"y": torch.randn(2, 5)}), dynamic_shapes=({1: dynamic}, {"y": {1: dynamic}})
    )
    torch.export.save(program, tmp_path / "net.pt2")
    origin = open_program(tmp_path / "net.pt2", ())
    long, short = np.ones((2, 9), np.float32), np.ones((2, 4), np.float32)
    assert origin.captured == {"L": 9, "L2": 5}
    assert origin.run({"x": long, "batch_y": short})["output"].shape == (2,)
    with pytest.raises(InputSpecError, match="for sizes with L > L2 only, not for L=4, L2=9"):
        origin.run({"x": short, "batch_y": long})


def test_a_size_that_is_a_multiple_of_another_is_taken_in_steps_only(tmp_path: Path) -> None:
    half = torch.export.Dim("half", min=2, max=64)
    program = torch.export.export(nn.AvgPool1d(2), (torch.randn(2, 3, 8),), dynamic_shapes=({2: 2 * half},))
    torch.export.save(program, tmp_path / "net.pt2")
    origin = open_program(tmp_path / "net.pt2", ())
    assert origin.run({"input": np.ones((2, 3, 6), np.float32)})["output"].shape == (2, 3, 3)
    with pytest.raises(InputSpecError, match="L % 2 == 0 only, not for L=7"):
        origin.run({"input": np.ones((2, 3, 7), np.float32)})


@pytest.mark.parametrize(
    ("text", "holding"),
    [
        ("math.trunc(0.5*torch.sym_float(L['x'].size()[1])) == 4", {8, 9}),
        ("(L['x'].size()[1] // 3) == 3", {9, 10, 11}),
        ("(L['x'].size()[1] >> 2) == 2", {8, 9, 10, 11}),
        ("max(9, L['x'].size()[1]) <= 9", set(range(2, 10))),
        ("math.log2(L['x'].size()[1]) < 3", set(range(2, 8))),
        ("((-1)*L['x'].size()[1]) % 4 == 3", {5, 9, 13}),
    ],
)
def test_a_guard_is_computed_as_torch_means_it(text: str, holding: set[int]) -> None:
    guard = guard_of(text, ["x"], parse_inputs(["x=FP32[2,L]"]))
    assert guard is not None
    assert {size for size in range(2, 16) if guard.holds({"L": size})} == holding
