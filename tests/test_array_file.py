"""A file whose header claims what cannot be, and a damaged one, are a sentence and no traceback."""

from __future__ import annotations

import zipfile
from pathlib import Path

import click
import numpy as np
import pytest

from normfold.array_file import open_array_file
from normfold.cli.benching import _arrays
from normfold.cli.ends import _numbers
from normfold.cli.infer import _read

TOO_LARGE = "it says that it holds more than fits into memory"


def claiming(shape: tuple[int, ...]) -> bytes:
    """A .npy file without numbers, whose header claims ``shape``."""
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize("shape", [(99999999999, 99999), (1 << 44,), (10**30,)])
def test_a_header_that_claims_more_than_memory_is_said(tmp_path: Path, shape: tuple[int, ...]) -> None:
    lone, packed = tmp_path / "x.npy", tmp_path / "x.npz"
    lone.write_bytes(claiming(shape))
    with zipfile.ZipFile(packed, "w") as made:
        made.writestr("x.npy", claiming(shape))
    with pytest.raises(ValueError, match=TOO_LARGE):
        open_array_file(lone)
    for file in (lone, packed):
        with pytest.raises(click.UsageError, match=TOO_LARGE):
            _read("x", f"@{file}")
    with pytest.raises(ValueError, match=TOO_LARGE):
        _arrays(packed)
    with pytest.raises(click.ClickException, match=TOO_LARGE):
        _numbers(str(lone), "x=x.npy,1")


def test_a_damaged_member_of_an_archive_is_said(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez_compressed(file, x=np.arange(1000.0))
    content = bytearray(file.read_bytes())
    content[60:200] = bytes(140)
    file.write_bytes(content)
    with pytest.raises(click.UsageError, match=r"x\.npz is not a \.npy, \.npz or \.json file with numbers: "):
        _read("x", f"@{file}")
    with pytest.raises(ValueError, match=r"x\.npz is not an \.npz file of arrays by name: "):
        _arrays(file)


def test_an_archive_packed_in_a_way_that_is_not_known_is_said(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez(file, x=np.arange(10.0))
    content = file.read_bytes()
    at = content.rindex(b"PK\1\2") + 10  # the method in the list of contents
    file.write_bytes(content[:at] + b"\x63\0" + content[at + 2 :])
    with pytest.raises(click.UsageError, match="compression"):
        _read("x", f"@{file}")
