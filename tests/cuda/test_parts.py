"""Wheels for a machine with a GPU: fetched, cut into loads, checked, put together, installed. With small wheels."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.cuda import environment, loads, parts
from tests.cuda.loads import MANIFEST, PartsError


def written(path: Path, size: int) -> Path:
    """A file of drawn bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(size).randbytes(size))
    return path


def wheel(folder: Path, name: str, version: str, package: str, size: int = 0) -> Path:
    """A wheel of one package, whose __version__ is that of the wheel, and ``size`` bytes of data."""
    path = folder / f"{parts.normal(name)}-{version}-py3-none-any.whl"
    info = f"{parts.normal(name)}-{version}.dist-info"
    files = {
        f"{package}/__init__.py": f"__version__ = {version!r}\n".encode(),
        f"{package}/data": random.Random(size).randbytes(size),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD")).encode()
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return path


@pytest.fixture
def cut(tmp_path):
    """The loads of a large and a small file, and these files."""
    files = [written(tmp_path / "large", 3000), written(tmp_path / "small", 100)]
    return tmp_path / "cuda", files, loads.cut(files, tmp_path / "cuda", 1000)


def test_loads_are_no_larger_than_asked_and_give_the_same_bytes_again(cut):
    folder, files, wheels = cut
    assert [path.name for path in loads.load_folders(folder)] == ["1", "2", "3", "4"]
    for load in loads.load_folders(folder):
        assert sum(path.stat().st_size for path in load.iterdir() if path.name != MANIFEST) <= 1000
    assert (folder / "1" / "small").read_bytes() == files[1].read_bytes()
    assert loads.manifest(folder) == wheels
    joined = loads.join(wheels, folder)
    assert [path.read_bytes() for path in joined] == [files[1].read_bytes(), files[0].read_bytes()]
    for load in (1, 2):
        (folder / str(load) / "large.1").unlink(missing_ok=True)
    assert loads.join(wheels, folder) == joined  # what was put together needs no pieces


def test_a_second_cut_keeps_whole_pieces_mends_damaged_ones_and_removes_old_ones(cut):
    folder, files, _ = cut
    kept, damaged = folder / "2" / "large.2", folder / "3" / "large.3"
    before = kept.stat().st_ino
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    loads.cut(files, folder, 1000)
    assert kept.stat().st_ino == before
    assert loads.missing(loads.manifest(folder), folder) == {}
    loads.cut(files[1:], folder, 1000)
    assert [path.name for path in loads.load_folders(folder)] == ["1"]
    assert sorted(path.name for path in (folder / "1").iterdir()) == [MANIFEST, "small"]


def test_a_missing_and_a_damaged_piece_are_named_with_what_to_carry(cut):
    folder, _, wheels = cut
    (folder / "2" / "large.2").unlink()
    damaged = folder / "4" / "large.4"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    said = environment.arrived(folder).splitlines()
    assert said[:4] == [
        "load 1 of 4: whole",
        "load 2 of 4: large.2 is missing",
        "load 3 of 4: whole",
        "load 4 of 4: large.4 is damaged: its SHA-256 is not that of the list",
    ]
    assert said[4] == f"carry next: {folder / '2'}, {folder / '4'}"
    assert said[5].startswith("Python 3.")
    with pytest.raises(PartsError, match=r"2: large.2 is missing; .*4: large.4 is damaged.*; carry them again"):
        loads.join(wheels, folder)


def test_loads_that_do_not_belong_together_or_are_not_there_are_an_error(cut, tmp_path):
    folder, files, _ = cut
    with pytest.raises(PartsError, match=r"no load is in .*make cuda-parts"):
        loads.manifest(tmp_path / "empty")
    (folder / "1" / MANIFEST).unlink()
    assert len(loads.manifest(folder)) == 2  # each load has the list
    other = tmp_path / "other"
    loads.cut(files[1:], other, 1000)
    (folder / "1" / MANIFEST).write_bytes((other / "1" / MANIFEST).read_bytes())
    with pytest.raises(
        PartsError, match=r"2 is of another set than .*1: carry all loads of one 'make cuda-parts' again"
    ):
        loads.manifest(folder)
    (other / "1" / MANIFEST).write_text('[{"name": 1}]', encoding="utf-8")
    with pytest.raises(PartsError, match=r"manifest.json is damaged .* again"):
        loads.manifest(other)


def test_what_was_put_together_wrongly_is_not_kept(cut):
    folder, _, wheels = cut
    wrong = [loads.Wheel(one.name, one.size, "0" * 64, one.pieces) for one in wheels]
    with pytest.raises(PartsError, match="small is not whole after its pieces were put together"):
        loads.join(wrong, folder)
    assert not (folder / "wheels" / "small").exists()


@pytest.mark.parametrize("module", ["numpy", "google.protobuf", "not_there", "not_there.inside"])
def test_what_a_machine_lacks_is_found_without_an_import(monkeypatch, module):
    monkeypatch.setattr(environment, "NEEDED", (module,))
    assert environment.lacks().endswith(f"missing here: {module if 'not_there' in module else 'none'}")


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["parts", *arguments])
    code = parts.main()
    return code, *capsys.readouterr()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip finds, and no index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    return tmp_path / "index"


def test_wheels_are_fetched_once_and_what_to_carry_is_printed(index, tmp_path, monkeypatch, capsys):
    wheel(index, "fake-gpu", "1.5", "fake", 2500)
    folder = tmp_path / "cuda"
    asked = ("fake-gpu==1.5", "--folder", str(folder), "--most-bytes", "1000")
    code, out, _ = run(monkeypatch, capsys, *asked)
    assert code == 0
    assert "fetching fake-gpu==1.5 for Python 3.12" in out
    assert f"  call 1: carry {folder / '1'}, run: tests/cuda/run.sh keep\n" in out
    assert out.splitlines()[-1].endswith(f"carry {folder / '4'}, run: tests/cuda/run.sh RESULTS")
    fetch = parts.fetch
    monkeypatch.setattr(parts, "fetch", lambda *_: pytest.fail("it is there"))
    assert run(monkeypatch, capsys, *asked)[0] == 0
    (kept,) = (folder / "wheels").glob("*.whl")
    kept.write_bytes(b"half")
    monkeypatch.setattr(parts, "fetch", fetch)
    assert run(monkeypatch, capsys, *asked)[0] == 0
    assert zipfile.is_zipfile(kept)
    written(folder / "wheels" / "old-1-py3-none-any.whl", 9)
    assert [path.name for path in parts.fetched(["fake-gpu==1.5"], "3.12", folder / "wheels")] == [kept.name]
    assert not (folder / "wheels" / "old-1-py3-none-any.whl").exists()


def test_a_wheel_that_is_not_there_is_one_sentence(index, tmp_path, monkeypatch, capsys):
    wheel(index, "fake-gpu", "1.5", "fake")
    code, _, err = run(monkeypatch, capsys, "fake-gpu==9", "--folder", str(tmp_path / "cuda"))
    assert code == 1
    assert err == (
        "cuda-parts: fake-gpu==9: there is no such wheel for Python 3.12 on Linux (x86-64); "
        "the newest that the index has: 1.5\n"
    )
    assert loads.load_folders(tmp_path / "cuda") == []


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken\nERROR: No matching distribution",
            "is there a network",
        ),
        ("ERROR: No matching distribution found for x (from versions: none)", "the index has none"),
        ("ERROR: No space left on device", "No space left on device"),
        ("", "pip failed without a word"),
    ],
)
def test_why_pip_fetched_nothing(log, said):
    assert said in parts.why(log, "3.12")


def test_a_version_comes_from_the_constraints_or_must_be_given(tmp_path, root):
    (tmp_path / "c.txt").write_text("Other==1\nSome.Name==2.0\n", encoding="utf-8")
    assert parts.with_version("some-name", tmp_path / "c.txt") == "some-name==2.0"
    assert parts.with_version("some-name==3", tmp_path / "c.txt") == "some-name==3"
    assert parts.with_version("hpack").startswith("hpack==")
    with pytest.raises(PartsError, match=r"c.txt has no version of none: write none==VERSION"):
        parts.with_version("none", tmp_path / "c.txt")
    with pytest.raises(PartsError, match="is no package: write NAME or NAME==VERSION"):
        parts.with_version("x>=1", tmp_path / "c.txt")
    assert "tests.cuda.parts $(GPU_WHEEL) hpack" in (root / "Makefile").read_text(encoding="utf-8")


def test_a_load_of_no_size_is_a_mistake(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "hpack", "--most-bytes", "0")
    assert "--most-bytes: got 0, expected at least 1" in capsys.readouterr().err


def test_the_environment_has_the_carried_onnxruntime_alone_and_all_else_of_this_python(tmp_path, root):
    made = wheel(tmp_path / "index", "onnxruntime-gpu", "99.0", "onnxruntime", 1500)
    folder = tmp_path / "cuda"
    loads.cut([made], folder, 1000)
    command = [sys.executable, "tests/cuda/environment.py", "build", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    script = """
import importlib.metadata as m, json, onnxruntime, normfold, numpy
from normfold.serving.runtime.devices import installed_runtimes
print(json.dumps([onnxruntime.__version__, installed_runtimes(), m.version("normfold"), normfold.__file__]))
"""
    python = done.stdout.splitlines()[-1]
    asked = subprocess.run([python, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr
    version, runtimes, own, place = json.loads(asked.stdout)
    assert (version, runtimes) == ("99.0", ["onnxruntime-gpu 99.0"])
    assert own
    assert Path(place).parent == root / "src" / "normfold"
    marker = Path(python).parents[1] / environment.MARKER
    before = marker.stat().st_mtime_ns
    assert subprocess.run(command, cwd=root, check=True, capture_output=True).returncode == 0
    assert marker.stat().st_mtime_ns == before


def test_a_wheel_that_pip_refuses_and_a_wrong_command_end_in_one_sentence(tmp_path, root):
    loads.cut([written(tmp_path / "bad-1-py3-none-any.whl", 50)], tmp_path / "cuda", 1000)
    program = [sys.executable, "tests/cuda/environment.py"]
    done = subprocess.run(
        [*program, "build", str(tmp_path / "cuda")], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("environment: pip installs no wheel with ")
    assert done.stderr.count("\n") == 1
    done = subprocess.run([*program, "other"], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
