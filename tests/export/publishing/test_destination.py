"""What is said of the files that are there, before the work begins and in the notes of the report."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from normfold.export.errors import PublishError
from normfold.export.inputs.specs import parse_inputs
from normfold.export.publishing.config import OutputSpec, limits, render_config
from normfold.export.publishing.destination import Destination, check_destination
from normfold.export.publishing.kept import kept_notes, largest_batch
from normfold.export.publishing.publish import Publication, publish
from normfold.protos.datatypes import by_name

USUAL = "x=FP32[N,3,L]"


def files(inputs: str = USUAL, classes: int = 2, labels: str = "") -> dict[str, bytes]:
    outputs = (OutputSpec("y", by_name("FP32"), ("N", classes)),)
    text = render_config("net", parse_inputs([inputs]), outputs, "y" if labels else None, {"N": 2, "L": 8})
    return {"config.pbtxt": text.encode(), **({"labels.txt": labels.encode()} if labels else {})}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with version 1 of 'net'."""
    publish(tmp_path, Publication("net", files(), {"model.onnx": b"graph"}))
    return tmp_path


def check(repository: Path, inputs: str = USUAL, **options: object) -> None:
    check_destination(Destination(repository, "net", **options), parse_inputs([inputs]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        ("x=FP32[N,4,L]", "  input 'x': FP32[-1,3,-1] there, FP32[-1,4,-1] in this export"),
        ("x=FP16[N,3,L]", "  input 'x': FP32[-1,3,-1] there, FP16[-1,3,-1] in this export"),
        ("ecg=FP32[N,3,L]", "  input 'ecg': not there, FP32[-1,3,-1] in this export"),
        ("x=FP32[N,3,32]", "  input 'x': FP32[-1,3,-1] there, FP32[-1,3,32] in this export"),
    ],
)
def test_other_inputs_are_listed_from_the_inputs_alone(repository: Path, inputs: str, line: str) -> None:
    with pytest.raises(PublishError, match=r"another config\.pbtxt, which version 1 of it uses") as refused:
        check(repository, inputs)
    assert line in str(refused.value).splitlines()
    check(repository, inputs, version=1, overwrite=True)
    check(repository, USUAL)


def test_several_versions_are_spoken_of_as_several(repository: Path) -> None:
    publish(repository, Publication("net", files(), {"model.onnx": b"graph"}))
    with pytest.raises(PublishError, match=r"which versions 1, 2 of it use:"):
        check(repository, "x=FP32[N,4,L]")


def test_a_version_that_exists_is_refused_before_the_work(repository: Path) -> None:
    with pytest.raises(PublishError, match=r"1' exists; leave --version out for the next free one \(2\)"):
        check(repository, version=1)
    check(repository, version=1, overwrite=True)
    with pytest.raises(PublishError, match="version 0 is not a version"):
        check(repository, version=0)


def test_a_new_repository_is_not_made_by_the_check(tmp_path: Path) -> None:
    check(tmp_path / "new" / "repository")
    assert not (tmp_path / "new").exists()


def test_files_in_the_place_of_directories_and_missing_rights_are_said_as_such(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "file").write_text("")
    with pytest.raises(PublishError, match="file' is a file; expected a repository's directory"):
        check(repository / "file")
    with pytest.raises(PublishError, match="file' is a file; expected a model's directory"):
        check_destination(Destination(repository, "file"), parse_inputs([USUAL]))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != repository / "net")
    with pytest.raises(PublishError, match="net' may not be written by this user"):
        check(repository)
    check_destination(Destination(repository, "other"), parse_inputs([USUAL]))


def test_a_config_that_is_missing_or_cannot_be_read_is_said_as_such(repository: Path) -> None:
    path = repository / "net" / "config.pbtxt"
    path.write_text("max_batch_size: many")
    with pytest.raises(PublishError, match=r"config\.pbtxt' cannot be read: .*many"):
        check(repository)
    path.write_bytes(b"\xef\xbb\xbf" + files()["config.pbtxt"])
    check(repository)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PublishError, match=r"config\.pbtxt' cannot be read: it is not a plain file"):
        check(repository)
    path.unlink()
    with pytest.raises(PublishError, match=r"holds version 1 but no config\.pbtxt"):
        check(repository)
    (repository / "net" / "1").rename(repository / "net" / "weights")
    with pytest.raises(PublishError, match=r"net' is no model's directory: it holds 'weights' but no config\.pbtxt"):
        check(repository)


def test_other_outputs_are_listed_when_they_are_known(repository: Path) -> None:
    with pytest.raises(PublishError, match=r"  output 'y': FP32\[-1,2\] there, FP32\[-1,5\] in this export"):
        kept_notes(Destination(repository, "net"), files(classes=5), parse_inputs([USUAL]))


@pytest.mark.parametrize(("typed", "high"), [("N:1..256", 256), ("N:1..16", 16)])
def test_a_largest_batch_that_is_typed_but_kept_is_said_with_the_line_to_write(
    repository: Path, typed: str, high: int
) -> None:
    inputs = f"x=FP32[{typed},3,L]"
    destination = Destination(repository, "net")
    (note,) = kept_notes(destination, files(inputs), parse_inputs([inputs]))
    assert "keeps max_batch_size 64: it is of all versions" in note
    assert f"for the {typed} of this version write max_batch_size: {high} there" in note
    assert largest_batch(destination, files(inputs)) == 64
    assert largest_batch(Destination(repository, "new"), files(inputs)) == high
    assert kept_notes(Destination(repository, "new"), files(inputs), parse_inputs([inputs])) == ()
    assert kept_notes(destination, files(), parse_inputs([USUAL])) == ()


@pytest.mark.parametrize(
    ("policy", "version", "said"),
    [
        ("specific { versions: 1 }", None, "version 2 will not be served: the version_policy in .* chooses 1 of the"),
        ("specific { versions: [1, 2] }", None, ""),
        ("latest { num_versions: 2 }", None, ""),
        ("all {}", None, ""),
        ("", None, ""),
    ],
)
def test_a_policy_that_will_not_serve_the_new_version_is_said(
    repository: Path, policy: str, version: int | None, said: str
) -> None:
    if policy:
        with (repository / "net" / "config.pbtxt").open("a") as file:
            file.write(f"version_policy {{ {policy} }}\n")
    notes = " ".join(kept_notes(Destination(repository, "net", version), files(), parse_inputs([USUAL])))
    import re

    assert (re.search(said, notes) is not None) if said else notes == ""


def test_without_a_policy_only_the_highest_version_is_served_and_with_all_every_one(repository: Path) -> None:
    publish(repository, Publication("net", files(), {"model.onnx": b"graph"}), version=7)
    (note,) = kept_notes(Destination(repository, "net", 3), files(), parse_inputs([USUAL]))
    assert note.startswith("version 3 will not be served")
    assert re.search(r"normfold use \S+ 3 --repository ", note)
    assert "chooses 7 of the versions" in note
    with (repository / "net" / "config.pbtxt").open("a") as file:
        file.write("version_policy { all {} }\n")
    assert kept_notes(Destination(repository, "net", 3), files(), parse_inputs([USUAL])) == ()


def test_labels_that_change_for_every_version_are_said(repository: Path) -> None:
    (note,) = kept_notes(Destination(repository, "net"), files(labels="a\nb\n"), parse_inputs([USUAL]))
    assert note.endswith("labels.txt' now holds these 2 labels, for every version of 'net'")
    publish(repository, Publication("net", files(labels="a\nb\n"), {"model.onnx": b"graph"}))
    assert kept_notes(Destination(repository, "net"), files(labels="a\nb\n"), parse_inputs([USUAL])) == ()


def test_the_limits_of_a_request_are_said_for_each_dimension() -> None:
    specs = parse_inputs(["x=FP32[N:1..256,3,L:8..400:8]", "m=FP32[N,M:5..]"])
    assert limits(specs, 64) == (
        "N from 1 to 64 (max_batch_size in config.pbtxt)",
        "L from 8 to 400 in steps of 8",
        "M from 5 up",
    )
    assert limits(specs, 0)[0] == "N from 1 to 256"
    assert limits(parse_inputs(["x=FP32[3,8]"]), 0) == ()
