from __future__ import annotations

import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from normfold.export.errors import InputSpecError
from normfold.export.inputs.samples import fit, read_sample
from normfold.export.inputs.specs import parse_inputs

SPECS = parse_inputs(["x=FP32[N,3,L:2..]"])


def test_npy_npz_and_safetensors_hold_the_same_sample(tmp_path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    save_file({"x": x}, tmp_path / "x.safetensors")
    for name in ("x.npy", "x.npz", "x.safetensors"):
        np.testing.assert_array_equal(fit(read_sample(tmp_path / name), SPECS)["x"], x)


def test_a_single_example_in_float64_gets_a_batch_axis_and_the_input_dtype(tmp_path) -> None:
    np.save(tmp_path / "one.npy", np.ones((3, 5)))
    fitted = fit(read_sample(tmp_path / "one.npy"), SPECS)["x"]
    assert (fitted.shape, fitted.dtype) == ((1, 3, 5), np.float32)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((2, 4, 5), np.float32), "dimension 1 is 4, expected 3"),
        (np.zeros((2, 3, 1), np.float32), "dimension 2 is 1, expected L:2.."),
        (np.zeros((3,), np.float32), "has shape [3]"),
        (np.zeros((2, 3, 4), np.int64), "holds int64, the input takes FP32"),
    ],
)
def test_a_sample_that_does_not_fit_names_the_dimension(tmp_path, array, expected: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputSpecError) as caught:
        fit(read_sample(tmp_path / "x.npy"), SPECS)
    assert expected in str(caught.value)


def test_nan_and_infinity_are_refused_with_the_files_name_unless_they_are_meant(tmp_path) -> None:
    x = np.ones((2, 3, 4))
    for value, expected in ((np.nan, "NaN (1 of 24 numbers"), (-np.inf, "infinity (1 of"), (1e300, "infinity (1 of")):
        x[1, 2, 3] = value
        np.save(tmp_path / "bad.npy", x)
        with pytest.raises(InputSpecError, match="--allow-nonfinite") as caught:
            fit(read_sample(tmp_path / "bad.npy"), SPECS)
        assert f"sample 'bad.npy': 'x' holds {expected}" in str(caught.value)
        assert not np.isfinite(fit(read_sample(tmp_path / "bad.npy", allow_nonfinite=True), SPECS)["x"][1, 2, 3])


@pytest.mark.parametrize(("number", "datatype"), [(300, "UINT8"), (-1, "UINT8"), (1 << 40, "INT32")])
def test_an_integer_that_the_datatype_does_not_hold_is_refused(tmp_path, number: int, datatype: str) -> None:
    np.save(tmp_path / "k.npy", np.array([[1, number]]))
    with pytest.raises(InputSpecError, match=f"'k' holds {number}, and the input takes {datatype}, from"):
        fit(read_sample(tmp_path / "k.npy"), parse_inputs([f"k={datatype}[N,2]"]))


def test_an_integer_that_the_datatype_holds_is_cast(tmp_path) -> None:
    np.save(tmp_path / "k.npy", np.array([[0, 255]]))
    fitted = fit(read_sample(tmp_path / "k.npy"), parse_inputs(["k=UINT8[N,2]"]))["k"]
    assert (fitted.dtype, fitted.tolist()) == (np.uint8, [[0, 255]])


def test_a_sample_of_a_scalar_stays_one(tmp_path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 3, 4)), t=np.float64(2.5))
    fitted = fit(read_sample(tmp_path / "x.npz"), parse_inputs(["x=FP32[N,3,L]", "t=FP32[]"]))
    assert (fitted["t"].shape, fitted["t"].dtype) == ((), np.float32)


def test_a_sample_of_other_names_lists_both(tmp_path) -> None:
    np.savez(tmp_path / "x.npz", y=np.zeros(3))
    with pytest.raises(InputSpecError, match="holds 'y'; the inputs are 'x'"):
        fit(read_sample(tmp_path / "x.npz"), SPECS)


def test_objects_damaged_and_unknown_files_are_refused(tmp_path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "x.csv").write_text("1,2")
    (tmp_path / "csv.npy").write_text("1,2,3")
    (tmp_path / "empty.npy").touch()
    with zipfile.ZipFile(tmp_path / "torch.npz", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    for name, expected in (
        ("objects.npy", r"it holds objects; save numbers, such as x\.astype\('float32'\)$"),
        ("damaged.npz", "cannot be read"),
        ("csv.npy", r"it begins with b'1,2,3'; write it with np\.save or np\.savez$"),
        ("empty.npy", "it is empty$"),
        ("torch.npz", "it is a zip file of other things than arrays, as torch.save writes; use np.savez$"),
        ("x.csv", r"expected \.npy"),
        ("missing.npy", "no sample file"),
    ):
        with pytest.raises(InputSpecError, match=expected):
            read_sample(tmp_path / name)


def test_one_array_in_a_file_that_is_called_npz_is_read(tmp_path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.ones((2, 3, 4), np.float32))
    assert fit(read_sample(tmp_path / "x.npz"), SPECS)["x"].shape == (2, 3, 4)


def test_a_sample_that_unpacks_to_gigabytes_is_refused_unopened(tmp_path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as entry:
        for _ in range(33):
            entry.write(bytes(1 << 24))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputSpecError, match="at most 536,870,912 bytes"):
        read_sample(path)
    with (tmp_path / "long.npy").open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(InputSpecError, match="holds 1,099,511,627,776 bytes"):
        read_sample(tmp_path / "long.npy")
