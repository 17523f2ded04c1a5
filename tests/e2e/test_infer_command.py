"""``normfold infer`` against the real server."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner

from normfold.cli.infer import infer

X = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)


@pytest.fixture
def ask(address):
    return lambda *options: CliRunner().invoke(infer, [*options, "--address", address])


def test_json_on_the_command_line_takes_the_models_datatype(ask):
    done = ask("m", "--input", "x=[[1, 2, 3, 4]]", "--json")
    assert (done.exit_code, json.loads(done.output)) == (0, {"y": [[3, 6, 9, 12]], "z": [[-1, -2, -3, -4]]})


def test_the_texts_for_nan_and_infinity_in_an_answer_are_an_input_again(ask):
    x = '[["NaN", "Infinity", "-Infinity", 1.5]]'
    for value in (x, x.replace('"', "")):
        done = ask("m", "--input", f"x={value}", "--output", "y", "--json")
        assert (done.exit_code, done.output) == (0, '{"y": [["NaN", "Infinity", "-Infinity", 4.5]]}\n')
    assert "it holds text" in ask("m", "--input", 'x=[["nan", "x", "y", "z"]]').output


@pytest.mark.parametrize("suffix", ["npy", "npz", "json"])
def test_inputs_come_from_files(ask, tmp_path, suffix):
    path = tmp_path / f"one.{suffix}"
    if suffix == "npy":
        np.save(path, X)
    elif suffix == "npz":
        np.savez(path, x=X, other=X)
    else:
        path.write_text(json.dumps(X.tolist()), encoding="utf-8")
    done = ask("m", "--input", f"x=@{path}", "--version", "1", "--output", "y", "--json")
    assert (done.exit_code, json.loads(done.output)) == (0, {"y": (2 * X).tolist()})


def test_a_file_of_float64_is_refused_with_the_cure_and_cast_on_demand(ask, tmp_path):
    path = tmp_path / "one.npy"
    np.save(path, X.astype(np.float64))
    refused = ask("m", "--input", f"x=@{path}")
    assert refused.exit_code == 2
    assert "holds float64, and input 'x' of the model takes float32: add --cast, or save it as" in refused.output
    assert "x.astype('float32')" in refused.output
    done = ask("m", "--input", f"x=@{path}", "--version", "1", "--output", "y", "--json", "--cast")
    assert (done.exit_code, json.loads(done.output)) == (0, {"y": (2 * X).tolist()})


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://127.0.0.1:8001", "leave out http://, an address is host:port: '127.0.0.1:8001'"),
        ("127.0.0.1", "it has no port. normfold serve listens on port 8001"),
        ("127.0.0.1:99999", "'99999' is not a port from 1 to 65535"),
    ],
)
def test_a_wrong_address_is_said_before_anything_is_sent(address, said):
    done = CliRunner().invoke(infer, ["m", "--input", "x=1", "--address", address])
    assert (done.exit_code, said in done.output) == (2, True), done.output


def test_arrays_are_printed_with_their_type_and_shape(ask):
    done = ask("m", "--input", "x=[[1, 2, 3, 4]]", "--output", "y")
    assert (done.exit_code, done.stdout) == (0, "y FP32[1, 4]\n[[ 3.  6.  9. 12.]]\n")
    assert done.stderr == "answered by m version 2\n"


def test_top_prints_labels(ask):
    done = ask("m", "--input", "x=[[1, 2, 3, 4]]", "--top", "2")
    assert (done.exit_code, done.output.split()) == (0, ["12.000000", "d", "9.000000", "c"])
    done = ask("m", "--input", "x=[[1, 2, 3, 4]]", "--top", "1", "--json")
    assert json.loads(done.output) == [[{"score": 12.0, "index": 3, "label": "d"}]]


def test_text_goes_in_and_comes_out(ask):
    done = ask("text", "--input", 'x=[["é", "b"]]', "--json")
    assert (done.exit_code, json.loads(done.output)) == (0, {"y": [["é", "b"]]})


def test_text_keeps_the_nul_at_its_end_or_is_not_saved(ask, tmp_path):
    asked = ("text", "--input", r'x=[["é\u0000", "b"]]', "--json")
    assert json.loads(ask(*asked).output) == {"y": [["é\0", "b"]]}
    refused = ask(*asked, "--save", str(tmp_path / "answers.npz"))
    assert refused.exit_code == 1
    assert "cannot hold output 'y': its text ends in a NUL" in refused.output
    assert not list(tmp_path.iterdir())


def test_outputs_are_saved_whole(ask, tmp_path):
    path = tmp_path / "out.npz"
    done = ask("m", "--input", "x=[[1, 2, 3, 4]]", "--save", str(path))
    assert (done.exit_code, done.stdout) == (0, "")
    assert f"wrote {path}\n" in done.stderr
    with np.load(path) as saved:
        assert {name: saved[name].tolist() for name in saved} == {"y": [[3, 6, 9, 12]], "z": [[-1, -2, -3, -4]]}
    assert [p.name for p in tmp_path.iterdir()] == ["out.npz"]


def test_a_file_without_its_at_sign_and_a_file_of_objects_are_named(ask, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([None, {}], object), allow_pickle=True)
    for value, said in ((path, f"it is a file, so write --input x=@{path}"), (f"@{path}", "it holds objects; save")):
        done = ask("m", "--input", f"x={value}")
        assert done.exit_code == 2
        assert said in done.output
    assert "neither @file nor JSON (" in ask("m", "--input", "x=" + "y" * 5000).output


@pytest.mark.parametrize("text", ['{"x": [[1, 2, 3, 4]]}', '[{"x": 1}]', "{}"])
def test_an_object_of_json_is_refused_with_what_must_be_there(ask, tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    for value, where in ((f"@{file}", f"{file}"), (text, "the JSON")):
        done = ask("m", "--input", f"x={value}")
        assert done.exit_code == 2
        said = " ".join(done.output.split())
        assert f"input 'x': {where} holds an object, {{…}}; it must hold nothing but the values" in said
        assert "such as [[1, 2, 3], [4, 5, 6]]" in said
    file.write_text("[[1, 2")
    assert f"{file} is not JSON: Expecting" in " ".join(ask("m", "--input", f"x=@{file}").output.split())


def test_a_file_that_numpy_did_not_write_is_named_for_what_it_is(ask, tmp_path):
    (tmp_path / "notes.txt").write_text("N\nS\n")
    (tmp_path / "empty.npy").touch()
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as made:
        made.writestr("weights/data.pkl", "")
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4")
    for name, said in (
        ("notes.txt", "it begins with b'N\\nS\\n'; write it with np.save or np.savez"),
        ("empty.npy", "it is empty"),
        ("weights.pt", "a zip file of other things than arrays, as torch.save writes"),
        ("cut.npz", "File is not a zip file"),
    ):
        done = ask("m", "--input", f"x=@{tmp_path / name}")
        assert done.exit_code == 2, done.output
        assert said in done.output


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["m", "--input", "x=[[1,2,3,4]]", "--save", "o.csv"], 2, "--save o.csv must end in .npz"),
        (["m", "--input", "x=[[1,2,3,4]]", "--save", "nowhere/o.npz"], 2, "there is no folder nowhere; make it first"),
        (["other", "--input", "x=[[1,2,3,4]]"], 1, "; what is served: normfold models --address 127.0.0.1:"),
        (["M", "--input", "x=[[1,2,3,4]]"], 1, "'M' is not found; did you mean 'm'?"),
        (["m", "--input", "x"], 2, "is not NAME=VALUE"),
        (["m", "--input", "x=1", "--metadata", "a"], 2, "--metadata 'a' is not NAME=VALUE, such as traceparent=00-…"),
        (["m", "--input", "x=1", "--metadata", "A=b"], 2, "'A' is not a name of lower-case ASCII"),
        (["m", "--input", "x=1", "--metadata", "a=b", "--metadata", "a=c"], 2, "--metadata a is given more than once"),
        (["m", "--input", "x=1", "--metadata", "a: s3cret"], 2, "--metadata with the name 'a' is not NAME=VALUE"),
        (["m", "--input", "x=1", "--metadata", "a: s3cret=="], 2, "--metadata with the name 'a' is not NAME=VALUE"),
        (["m", "--input", "x=1", "--metadata", "=s3cret"], 2, "--metadata with the name '' is not NAME=VALUE"),
        (["m", "--input", "x=1", "--metadata", "a-bin=s3cret!"], 2, "has bytes, written in base64, such as a-bin=AP8="),
        (["m", "--input", "x=[[1"], 2, "neither @file nor JSON"),
        (["m", "--input", "x=@nowhere.npy"], 2, "nowhere.npy cannot be read"),
        (["m", "--input", 'x=[["a"]]'], 2, "is not FP32"),
        (["m", "--input", "x=[[1,2],[3]]"], 2, "its rows have different lengths"),
        (["m", "--input", "x=[[null,2,3,4]]"], 2, "holds None (null)"),
        (["m", "--input", "x=[[true,2,3,4]]", "--input", "x=[[1,2,3,4]]"], 2, "--input x is given more than once"),
        (["m", "--input", "x=[[1,2,3,4]]", "--version", "latest"], 2, "version 'latest' is not a number from 1 up"),
        (["m", "--input", "x=[[1],[2],[3],[4]]"], 1, "transposed? x.swapaxes(-1, -2) has the shape [1, 4], which fits"),
        (["m", "--input", "x=[[1,2,3,4]]", "--top", "1", "--save", "o.npz"], 2, "give one of them"),
        (["m", "--input", "x=[[1,2,3]]"], 1, "Dimension 1 is 3, the model takes 4"),
        (["m", "--input", "w=[[1,2,3,4]]"], 1, "unexpected inference input 'w'"),
        (["m", "--input", "x=[[1,2,3,4]]", "--output", "yy"], 1, "did you mean 'y'"),
        (["m", "--input", "x=[[1,2,3,4]]", "--version", "9"], 1, "version 9 is not found"),
        (["lost", "--input", "x=1"], 1, "'lost' is not found"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(ask, options, code, said):
    done = ask(*options)
    assert done.exit_code == code
    assert said in done.output
    assert "Traceback" not in done.output
    assert "s3cret" not in done.output


def test_help_teaches_by_example():
    done = CliRunner().invoke(infer, ["--help"])
    assert done.exit_code == 0
    assert "normfold infer surnames --input x=@one.npy --top 3" in done.output
