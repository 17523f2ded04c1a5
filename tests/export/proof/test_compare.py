"""Two networks compared, as ``normfold verify`` does: the tolerance is that of the types that a file computes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.export.fold.graphs import graph, norm, weights

from normfold.export.errors import InputSpecError
from normfold.export.forms.precision import in_float16
from normfold.export.inputs.specs import parse_inputs
from normfold.export.onnx_fold import fold_file
from normfold.export.proof.compare import Side, _ranged, compare
from normfold.export.proof.verify import Verification
from normfold.export.sources.onnx_origin import open_onnx

HALF = np.float16
WHOLE = """(float16[N, 3, L] x) => (float16[N, 4, M] y) {
    c = Conv (x, w) r = Relu (c) n = BN(r, n) d = Conv (n, v) y = BN(d, m)
}"""


def network(dtype: type[np.floating]) -> onnx.ModelProto:
    held = {"w": weights(8, 3, 3, dtype=dtype), "v": weights(4, 8, 1, dtype=dtype)}
    text = WHOLE if dtype is HALF else WHOLE.replace("float16", "float")
    return graph(text, **held, **norm("n", 8, dtype, gamma="positive"), **norm("m", 4, dtype))


def compared(first: Path, second: Path) -> Verification:
    a, b = (open_onnx(path, (), opset=None) for path in (first, second))
    return compare(Side(str(first), a.run, a), Side(str(second), b.run, b))


def damaged(path: Path) -> Path:
    """Return a copy of the file in which the largest of 24 or more weights has the other sign."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 3)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[np.abs(array).argmax()] *= -1
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    other = path.with_name("damaged.onnx")
    onnx.save(model, other)
    return other


@pytest.fixture
def half(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "net.onnx", tmp_path / "folded.onnx"
    source.write_bytes(network(HALF).SerializeToString())
    fold_file(source, target, variant="folded")
    return source, target


def test_a_folded_file_in_float16_is_the_same_network_and_a_damaged_one_is_not(half: tuple[Path, Path]) -> None:
    source, target = half
    found = compared(source, target)
    assert found.passed, found.worst
    assert all(2.0**-8 <= d.bound < 0.05 for d in found.differences)
    assert not compared(source, damaged(target)).passed


def test_the_tolerance_is_that_of_the_file_whichever_side_it_is(tmp_path: Path) -> None:
    """A float32 file and the same in float16: as far apart as float16 rounds, and no further."""
    single, narrow = tmp_path / "single.onnx", tmp_path / "half.onnx"
    content = network(np.float32).SerializeToString()
    single.write_bytes(content)
    narrow.write_bytes(in_float16(content))
    for first, second in ((single, narrow), (narrow, single)):
        found = compared(first, second)
        assert found.passed, found.worst
        assert min(d.bound for d in found.differences) >= 2.0**-8
    assert not compared(single, damaged(narrow)).passed


def test_a_file_in_float32_keeps_the_bound_of_float32(tmp_path: Path) -> None:
    single = tmp_path / "single.onnx"
    single.write_bytes(network(np.float32).SerializeToString())
    assert max(d.bound for d in compared(single, single).differences) < 1e-5


def test_inputs_and_outputs_of_other_names_are_matched_by_their_order(half: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = half
    model = onnx.load(target)
    for old, new in (("x", "signal"), ("y", "score")):
        for value in (*model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]
    del model.metadata_props[:]
    other = tmp_path / "renamed.onnx"
    onnx.save(model, other)
    assert compared(source, other).passed
    assert compared(other, source).passed


def test_files_that_take_other_sizes_are_not_compared(tmp_path: Path) -> None:
    held = {"w": weights(8, 3, 3), "v": weights(8, 2, 3)}
    for name, channels, weight in (("three", 3, "w"), ("two", 2, "v")):
        text = f"(float[N, {channels}, L] x) => (float[N, 8, M] y) {{ y = Conv (x, {weight}) }}"
        onnx.save(graph(text, **{weight: held[weight]}), tmp_path / f"{name}.onnx")
    said = r"the two take other inputs, so they are not the same network: .* x=FP32\[N,3,L\], .* x=FP32\[N,2,L\]$"
    with pytest.raises(InputSpecError, match=said):
        compared(tmp_path / "three.onnx", tmp_path / "two.onnx")


def test_a_range_of_the_second_file_is_found_whichever_input_has_it() -> None:
    mine = parse_inputs(["a=FP32[N,L]", "b=FP32[N,L]"])
    for theirs in (
        ["a=FP32[M,K]", "b=FP32[N,T:8..]"],
        ["b=FP32[N,T:8..]", "a=FP32[M,K]"],
        ["u=FP32[M,K]", "v=FP32[N,T:8..]"],
    ):
        assert list(map(str, _ranged(mine, parse_inputs(theirs)))) == ["a=FP32[N,L:8..]", "b=FP32[N,L:8..]"]
    swapped = parse_inputs(["b=FP32[N,T:8..]", "c=FP32[N,S:4..]"])
    own = parse_inputs(["a=FP32[N,L]", "b=FP32[N,K]"])
    assert list(map(str, _ranged(own, swapped))) == ["a=FP32[N,L:8..]", "b=FP32[N,K:4..]"]
