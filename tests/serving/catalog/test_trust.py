"""Which versions are served: with a manifest or without, signed or not, and changed since then or not."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from normfold import whole_file
from normfold.cli.main import main
from normfold.cli.sign import sign
from normfold.manifest import manifest
from normfold.protos import grpc_service as pb
from normfold.serving.access.signatures import read_private_key, read_public_key, statement, verify
from normfold.serving.access.signatures import sign as signed
from normfold.serving.catalog.trust import UNCHECKED
from normfold.serving.errors import StartError


def write_keys(folder: Path, name: str, private=None) -> tuple[Path, Path]:
    """The files of a private key and of its public key."""
    private = private or ed25519.Ed25519PrivateKey.generate()
    key, public = folder / f"{name}.key", folder / f"{name}.pub"
    key.write_bytes(private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    return key, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> tuple[Path, Path]:
    return write_keys(tmp_path_factory.mktemp("keys"), "signing")


@pytest.fixture
def folder(tmp_path, models) -> Path:
    """The model m: two versions, a configuration and labels."""
    folder = tmp_path / "repository" / "m"
    config = 'version_policy { all {} } output { name: "y" data_type: TYPE_FP32 dims: 4 label_filename: "labels.txt" }'
    config = "max_batch_size: 8 input { name: 'x' data_type: TYPE_FP32 dims: 4 }" + config
    for number, factor in ((1, 2.0), (2, 3.0)):
        models.write(folder, models.scale(factor), number, config)
    (folder / "labels.txt").write_text("a\nb\nc\nd\n")
    return folder


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(sign, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    return done.output


def rows(serve, folder: Path, **options) -> dict[tuple[str, str], tuple[str, str]]:
    """State and reason of each version in the index of a server."""
    with serve(folder.parent, strict_readiness=False, **options) as one:
        found = one.call("RepositoryIndex", pb.RepositoryIndexRequest()).models
        return {(row.name, row.version): (row.state, row.reason) for row in found}


def test_a_version_without_a_manifest_is_served_with_a_warning_in_log_and_index(serve, folder, caplog):
    run(folder / "1")
    assert rows(serve, folder) == {("m", "1"): ("READY", ""), ("m", "2"): ("READY", UNCHECKED)}
    assert f"model 'm' version 2: {UNCHECKED}" in caplog.text
    assert "model 'm' version 1:" not in caplog.text


def test_what_is_no_model_is_not_signed_and_the_models_in_it_are_named(folder):
    said = run(folder.parent, code=1)
    assert "holds no version of a model, such as" in said
    assert said.endswith(f"; {folder.parent} holds {folder}\n")
    said = f"{folder / '9'} is not there; give a model's folder; {folder} holds {folder / '1'}, {folder / '2'}"
    assert said in run(folder / "9", code=1)
    (folder.parent / "net.onnx").touch()
    for path, said in ((folder / "labels.txt", "is a file"), (folder.parent / "n", "is not there")):
        assert run(path, code=1) == f"Error: {path} {said}; give a model's folder\n"


def test_with_require_manifest_it_is_not_served(serve, folder):
    run(folder / "1")
    found = rows(serve, folder, require_manifest=True)
    assert found["m", "1"] == ("READY", "")
    assert found["m", "2"][0] == "UNAVAILABLE"
    assert "it has no manifest.json, and the server runs with --require-manifest" in found["m", "2"][1]


def test_files_of_a_load_request_have_no_manifest_and_no_signature(serve, folder, keys):
    model = (folder / "1" / "model.onnx").read_bytes()
    load = pb.RepositoryModelLoadRequest(model_name="sent")
    load.parameters["config"].string_param = "{}"
    load.parameters["file:1/model.onnx"].bytes_param = model
    load.parameters["file:1/manifest.json"].bytes_param = manifest({"model.onnx": model})
    run(folder, "--key", keys[0])
    for options in ({"require_manifest": True}, {"require_signature": keys[1]}):
        with serve(folder.parent, **options) as one, pytest.raises(grpc.RpcError) as caught:
            one.call("RepositoryModelLoad", load)
        assert "it has no manifest.json, and the server runs with --require-" in caught.value.details()


def test_a_configuration_of_a_load_request_has_no_signature(serve, folder, keys, ask):
    """It would name the classes otherwise than the labels that were signed."""
    run(folder, "--key", keys[0])
    load = pb.RepositoryModelLoadRequest(model_name="m")
    load.parameters["config"].string_param = '{"maxBatchSize": 8}'
    with serve(folder.parent, require_signature=keys[1]) as one:
        with pytest.raises(grpc.RpcError) as caught:
            one.call("RepositoryModelLoad", load)
        assert "its configuration came with the load request, where no signature covers it" in caught.value.details()
        assert "versions 1, 2 go on answering" in caught.value.details()
        request = ask("m")
        request.outputs.add(name="y").parameters["classification"].int64_param = 1
        assert b":d" in one.infer(request).raw_output_contents[0]
    with serve(folder.parent, require_manifest=True) as one:
        one.call("RepositoryModelLoad", load)


def test_a_version_without_a_file_of_its_manifest_is_neither_served_nor_signed(serve, folder, keys):
    (folder / "2" / "golden.json").write_bytes(b"{}")
    run(folder)
    (folder / "2" / "golden.json").unlink()
    why = "'golden.json' of manifest.json is not there"
    assert why in rows(serve, folder)["m", "2"][1]
    assert f"{folder / '2'} is not signed: {why}" in run(folder, "--key", keys[0], code=1)


def test_a_signed_model_is_served_with_its_labels(serve, folder, keys, ask):
    assert f"signed {folder / '2'}" in run(folder, "--key", keys[0])
    with serve(folder.parent, require_signature=keys[1]) as one:
        request = ask("m")
        output = request.outputs.add(name="y")
        output.parameters["classification"].int64_param = 1
        assert b"d" in one.infer(request).raw_output_contents[0]


def with_labels_at(folder: Path, place: str) -> None:
    """Move the labels, and name their new place in the configuration."""
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / "labels.txt").rename(folder / place)
    config = folder / "config.pbtxt"
    config.write_text(config.read_text().replace("labels.txt", place))


@pytest.mark.parametrize("place", ["texts/labels.txt", "1/labels.txt"])
def test_labels_that_no_signature_covers_are_not_served(serve, folder, keys, place):
    with_labels_at(folder, place)
    run(folder, "--key", keys[0])
    state, reason = rows(serve, folder, require_signature=keys[1])["m", "2"]
    assert state == "UNAVAILABLE"
    assert f"{place} lies in a folder, where no signature covers it" in reason


@pytest.mark.parametrize(("text", "state"), [("a\nb\nc\nd\n", "READY"), ("b\na\nc\nd\n", "UNAVAILABLE")])
def test_labels_within_a_version_are_held_to_its_manifest(serve, folder, text, state):
    with_labels_at(folder, "1/labels.txt")
    run(folder)
    (folder / "1" / "labels.txt").write_text(text)
    assert rows(serve, folder)["m", "1"][0] == state


def other_key(folder: Path, keys) -> None:
    run(folder, "--key", write_keys(folder.parent.parent, "other")[0])


def copied(folder: Path, keys) -> None:
    shutil.rmtree(folder / "2")
    shutil.copytree(folder / "1", folder / "2")


def renamed(folder: Path, keys) -> None:
    shutil.copytree(folder, folder.parent / "n")
    shutil.rmtree(folder)


CHANGES = {
    "the labels": lambda folder, keys: (folder / "labels.txt").write_text("b\na\nc\nd\n"),
    "config.pbtxt": lambda folder, keys: (folder / "config.pbtxt").write_text("version_policy { all {} }"),
    "a file more": lambda folder, keys: (folder / "more.txt").write_text("x"),
    "the manifest": lambda folder, keys: (folder / "2" / "manifest.json").write_bytes(
        manifest({"model.onnx": (folder / "2" / "model.onnx").read_bytes()}) + b" "
    ),
    "no manifest": lambda folder, keys: (folder / "2" / "manifest.json").unlink(),
    "no signature": lambda folder, keys: (folder / "2" / "manifest.sig").unlink(),
    "a broken signature": lambda folder, keys: (folder / "2" / "manifest.sig").write_bytes(b"ed25519:AAAA\n"),
    "no text": lambda folder, keys: (folder / "2" / "manifest.sig").write_bytes(b"\xff\x00"),
    "the model": lambda folder, keys: (folder / "2" / "model.onnx").write_bytes(b"x"),
    "another key": other_key,
    "an older version in its place": copied,
    "another name": renamed,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_since_it_was_signed_is_not_served(serve, folder, keys, change):
    run(folder, "--key", keys[0])
    CHANGES[change](folder, keys)
    found = rows(serve, folder, require_signature=keys[1])
    changed = {row: state for row, (state, _) in found.items() if row[1] == "2"}
    assert set(changed.values()) == {"UNAVAILABLE"}
    if change in ("config.pbtxt", "no manifest", "no signature"):
        assert "normfold sign MODEL_FOLDER --key SIGNING.key" in found["m", "2"][1]


def test_a_choice_that_the_signatures_do_not_cover_is_told_to_sign_again(serve, folder, keys):
    run(folder, "--key", keys[0])
    with serve(folder.parent, require_signature=keys[1]) as one:
        choice = ["use", "m", "1", "-r", str(folder.parent), "--address", one.server.address]
        done = CliRunner().invoke(main, choice)
        assert done.exit_code == 1
        assert "; versions 1, 2 go on answering" in done.stderr
        assert f"signatures cover it: use --no-load, sign {folder} again, then normfold load m" in done.stderr
        assert CliRunner().invoke(main, [*choice, "--no-load"]).exit_code == 0
        run(folder, "--key", keys[0])
        done = CliRunner().invoke(main, ["load", "m", "--address", one.server.address])
        assert "version 1 in service" in done.output


def test_no_flipped_bit_is_served(serve, folder, keys):
    run(folder, "--key", keys[0])
    path = folder / "2" / "model.onnx"
    whole = path.read_bytes()
    drawn = random.Random(0)
    with serve(folder.parent, require_signature=keys[1]) as one:
        for _ in range(20):
            changed = bytearray(whole)
            changed[drawn.randrange(len(whole))] ^= 1 << drawn.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(grpc.RpcError, match="the file was changed"):
                one.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))
        path.write_bytes(whole)
        one.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))


def test_a_version_whose_files_are_not_those_of_its_manifest_is_not_signed(folder, keys):
    run(folder)
    (folder / "1" / "model.onnx").write_bytes(b"x")
    assert "is not signed: model.onnx has 1 bytes, manifest.json says" in run(folder, "--key", keys[0], code=1)
    assert not (folder / "1" / "manifest.sig").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_written_before_an_interruption_is_said(folder, monkeypatch, error):
    def stopped(path, content):
        if path.parent.name == "2":
            raise error
        written(path, content)

    written = whole_file.write_whole
    monkeypatch.setattr(whole_file, "write_whole", stopped)
    assert f"wrote {folder / '1' / 'manifest.json'}" in run(folder, code=1)


def test_the_manifest_has_every_file_and_one_that_is_there_is_kept(folder):
    (folder / "1" / "notes.txt").write_text("n")
    assert run(folder).count("wrote ") == 2
    found = json.loads((folder / "1" / "manifest.json").read_text())["files"]
    assert set(found) == {"model.onnx", "notes.txt"}
    assert found["notes.txt"]["sha256"] == hashlib.sha256(b"n").hexdigest()
    assert run(folder / "1") == f"{folder / '1'}: its files are those of its manifest.json; nothing to write\n"


def test_a_folder_that_is_no_model_and_keys_that_are_none_are_refused(folder, tmp_path, keys):
    assert "holds no version of a model" in run(folder.parent, code=1)
    assert "is not there; give a model's folder" in run(folder / "7", code=1)
    assert "cannot be read: No such file" in run(folder, "--key", tmp_path / "none", code=1)
    assert "is not a private key in PEM; make a pair with: openssl" in run(folder, "--key", keys[1], code=1)
    curve, _ = write_keys(tmp_path, "curve", ec.generate_private_key(ec.SECP256R1()))
    assert "is not an Ed25519 key" in run(folder, "--key", curve, code=1)
    private = read_private_key(keys[0])
    locked = private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"p"))
    (tmp_path / "locked").write_bytes(locked)
    assert "has a passphrase" in run(folder, "--key", tmp_path / "locked", code=1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StartError, match="it is not a plain file"):
        read_public_key(tmp_path / "pipe")


def test_openssl_checks_a_signature_of_ours(folder, keys, tmp_path):
    said = statement("m", 1, b"{}", {"labels.txt": b"a"})
    written = signed(read_private_key(keys[0]), said)
    assert verify(read_public_key(keys[1]), written, said)
    assert not verify(read_public_key(keys[1]), written, said + b" ")
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    import base64

    (tmp_path / "said").write_bytes(said)
    (tmp_path / "sig").write_bytes(base64.b64decode(written.removeprefix(b"ed25519:")))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin"]
    command += ["-in", str(tmp_path / "said"), "-sigfile", str(tmp_path / "sig")]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
