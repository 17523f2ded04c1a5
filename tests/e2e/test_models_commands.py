"""``normfold models``, ``load``, ``unload`` and ``use`` against a real server and its repository."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
from click.testing import CliRunner

from normfold.cli.control import LOADS
from normfold.cli.main import main
from normfold.serving.access.scopes import Scope
from normfold.serving.access.tokens import line
from normfold.serving.catalog.entry import NOT_LOADED
from normfold.serving.client.client import Client, ClientError
from normfold.serving.client.metadata import ServerMetadata
from normfold.serving.errors import Status

from .conftest import SCALE, write_model

X = np.array([[1, 2, 3, 4]], np.float32)
CONFIG = "# ours\nmax_batch_size: 8\n"


@pytest.fixture
def folder(tmp_path):
    for version, factor in ((1, "2.0"), (2, "3.0")):
        write_model(tmp_path / "m", SCALE.replace("FACTOR", factor), version, CONFIG)
    return tmp_path


def run(*arguments, code=0):
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done.output


def factor(address) -> float:
    with Client(address) as client:
        return float(client.infer("m", X)["y"][0, 0])


def rows(*arguments) -> list[dict]:
    return json.loads(run("models", "--json", *arguments))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_version_is_rolled_back_and_forward_and_the_choice_is_kept(folder, start, workers):
    with start(folder, "--model-control", "explicit", "--workers", workers) as server:
        at = ("--address", server.address)
        assert factor(server.address) == 3
        said = run("use", "m", 1, "-r", folder, *at)
        back = f"normfold use m latest --repository {folder} --address {server.address}"
        assert f"version 1 (before: the highest version); back: {back}\n" in said
        assert "m: version 1 in service" in said
        assert factor(server.address) == 2
        text = (folder / "m/config.pbtxt").read_text()
        assert text == CONFIG + "version_policy { specific { versions: [1] } }\n"
        assert [row["state"] for row in rows("-r", folder)] == ["in service", "not in service"]
        run("use", "m", "latest", "-r", folder, *at)
        assert (factor(server.address), (folder / "m/config.pbtxt").read_text()) == (3, CONFIG)
        run("use", "m", 1, *at)
        assert (factor(server.address), (folder / "m/config.pbtxt").read_text()) == (2, CONFIG)
        assert "m: version 2 in service" in run("load", "m", *at)
        said = run("unload", "m", *at)
        assert said == f"m is out of service; back again: normfold load m --address {server.address}\n"
        assert not any(row["state"] == "READY" for row in rows(*at))
        assert "did you mean 'm'" in run("load", "mm", *at, code=1)
        assert "the server has no model 'x'" in run("unload", "x", *at, code=1)


@pytest.mark.parametrize(
    ("scopes", "said"),
    [
        ({Scope.ADMIN, Scope.READ}, "m: version 1 in service"),
        ({Scope.ADMIN}, "m is in service; this token may not ask"),
    ],
)
def test_a_token_for_one_model_loads_uses_and_unloads_it(folder, start, tmp_path_factory, scopes, said):
    beside = tmp_path_factory.mktemp("tokens")
    (beside / "tokens").write_text(line("one", scopes, ["m"], "the-token") + "\n")
    (beside / "token").write_text("the-token\n")
    with start(folder, "--tokens", beside / "tokens", "--insecure", "--model-control", "explicit") as server:
        with_token = ("--address", server.address, "--token-file", beside / "token")
        (folder / "m/config.pbtxt").write_text(CONFIG + "version_policy { specific { versions: [1] } }\n")
        assert said in run("load", "m", *with_token)
        if Scope.READ in scopes:
            assert "m: version 2 in service" in run("use", "m", 2, *with_token)
            assert said in run("use", "m", 1, "-r", folder, *with_token)
        assert "m is out of service" in run("unload", "m", *with_token)
        assert "PERMISSION_DENIED" in run("load", "other", *with_token, code=1)
        assert "PERMISSION_DENIED" in run("unload", "other", *with_token, code=1)


def test_the_list_of_a_server_has_counters_inputs_and_reasons(folder, start):
    (folder / "bad/1").mkdir(parents=True)
    (folder / "bad/1/model.onnx").write_bytes(b"nothing")
    with start(folder, "--no-strict-readiness") as server:
        with Client(server.address) as client:
            for _ in range(3):
                client.infer("m", X)
        listed = {(row["model"], row["version"]): row for row in rows("--address", server.address)}
        one = listed["m", "2"]
        assert (one["state"], one["answered"], one["failed"], one["device"]) == ("READY", 3, 0, "cpu")
        assert 0 < one["p50_seconds"] <= one["p99_seconds"] < 60
        assert one["inputs"] == ["x FP32[-1,4]"]
        assert (listed["bad", "1"]["state"], bool(listed["bad", "1"]["reason"])) == ("UNAVAILABLE", True)
        text = run("models", "--address", server.address)
        assert "answered" in text
        assert listed["bad", "1"]["reason"].split()[0] in text


def test_lazy_models_are_listed_and_controlled_like_others(folder, start):
    options = ("--load", "lazily", "--memory-budget", "1GiB", "--load-seconds", "0")
    with start(folder, *options) as server:
        at = ("--address", server.address)
        (row,) = rows(*at)
        assert (row["state"], row["reason"]) == ("UNAVAILABLE", NOT_LOADED)
        factor(server.address)
        (row,) = rows(*at)
        assert (row["state"], row["answered"]) == ("READY", 1)
        run("unload", "m", *at)
        assert {row["reason"] for row in rows(*at)} == {"unloaded"}
        with pytest.raises(ClientError):
            factor(server.address)
        assert "version 2 in service" in run("load", "m", *at)
        assert "version 1 in service" in run("use", "m", "1", *at)


class Loading:
    """A client whose server takes loads; how one ends is its subclass's."""

    def __init__(self, *arguments, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def server_metadata(self):
        return ServerMetadata("s", "1", (LOADS,))


def test_ctrl_c_during_a_choice_gives_the_file_its_old_content_and_says_so(folder, monkeypatch):
    class Pressed(Loading):
        def load(self, model):
            raise KeyboardInterrupt

    monkeypatch.setattr("normfold.serving.client.client.Client", Pressed)
    said = run("use", "m", 1, "-r", folder, code=130)
    path = folder / "m" / "config.pbtxt"
    assert said == f"stopped; {path} has its old content again; what the server did: normfold models\n"
    assert path.read_text() == CONFIG


def test_a_choice_that_can_neither_be_loaded_nor_undone_says_that_the_file_keeps_it(folder, monkeypatch):
    class Refusing(Loading):
        def load(self, model):
            monkeypatch.setattr("normfold.whole_file.write_whole", full)
            raise ClientError(Status.UNAVAILABLE, "it does not load")

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("normfold.serving.client.client.Client", Refusing)
    said = run("use", "m", 1, "-r", folder, code=1)
    path = folder / "m" / "config.pbtxt"
    assert "it does not load" in said
    assert said.endswith(f"{path} cannot be written: No space left on device: it keeps its new content\n")
    assert "old content" not in said
    assert path.read_text() != CONFIG


def test_a_choice_that_does_not_load_changes_nothing(folder, start):
    (folder / "m/3").mkdir()
    (folder / "m/3/model.onnx").write_bytes(b"nothing")
    (folder / "m/config.pbtxt").write_text(CONFIG + "version_policy { specific { versions: 2 } }\n")
    before = (folder / "m/config.pbtxt").read_text()
    with start(folder, "--model-control", "explicit") as server:
        said = run("use", "m", 3, "-r", folder, "--address", server.address, code=1)
        assert "config.pbtxt has its old content again" in said
        assert "with --no-load it is changed without asking a server, and a server with --model-control poll" in said
        assert "before:" not in said
        assert (factor(server.address), (folder / "m/config.pbtxt").read_text()) == (3, before)


def test_a_list_that_is_piped_has_every_row_and_sentence_on_one_line(folder):
    for number in range(3):
        write_model(folder / f"{number}{'x' * 120}", SCALE.replace("FACTOR", "2.0"), 1, 'name: "copied"\n')
    text = run("models", "-r", folder)
    assert text.count("not readable") == 3
    lines = [line for line in text.splitlines() if "x" * 120 in line]
    assert len(lines) == 6
    sentence = "delete the line 'name: \"copied\"' in it (the folder is the name), or write"
    assert sum(sentence in line for line in lines) == 3


@pytest.mark.parametrize("control", ["poll", "none"])
def test_a_server_that_allows_no_loads_is_asked_before_the_file_is_touched(folder, start, control):
    file = folder / "m/config.pbtxt"
    before = (file.read_text(), file.stat().st_mtime_ns, file.stat().st_ino)
    with start(folder, "--model-control", control) as server:
        said = run("use", "m", 1, "-r", folder, "--address", server.address, code=1)
    assert ("this server polls its repository" if control == "poll" else "--model-control explicit") in said
    assert "config.pbtxt is unchanged; with --no-load it is changed" in said
    assert (file.read_text(), file.stat().st_mtime_ns, file.stat().st_ino) == before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_a_server_that_cannot_be_asked_leaves_the_file_alone(folder, address):
    run("use", "m", 1, "-r", folder, "--address", address, "--timeout", "5", code=1 if ":" in address else 2)
    assert (folder / "m/config.pbtxt").read_text() == CONFIG


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("use", "m", "x"), 2, "is not a number such as 1"),
        (("use", "m", "latest"), 2, "latest needs --repository DIR, the server's folder of models; without it, give"),
        (("use", "m", 7, "-r", "FOLDER"), 1, "m has no version 7; there are 1, 2"),
        (("use", "n", 1, "-r", "FOLDER"), 1, "no repository with a model 'n'"),
        (("load", "m", "--address", "127.0.0.1:1", "--timeout", "5"), 1, "127.0.0.1:1"),
        (("models", "--address", "nonsense"), 2, "nonsense"),
    ],
)
def test_a_mistake_is_said(folder, arguments, code, said):
    words = [folder if word == "FOLDER" else word for word in arguments]
    assert said in run(*words, code=code)


def test_the_list_of_a_repository_has_proved_ranges_and_batchnorms(trained):
    listed = {row["model"]: row for row in rows("-r", trained)}
    assert listed["surnames"]["state"] == "in service"
    assert "L from" in listed["surnames"]["inputs"][0]
    assert "before" in listed["surnames"]["batchnorms"]
