"""A measurement is made once for each network and machine, and nothing in the cache folder can stop an export."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from normfold.export.forms import remembered
from normfold.export.forms.machine import Machine
from normfold.export.forms.remembered import Measurement, Subject, measured_once

MACHINE = Machine("A CPU", "1.32.0", ("CPUExecutionProvider",), 1)
SUBJECT = Subject.of({"folded": b"f", "unfolded": b"u"}, "x[1,77,32]", MACHINE)
TAKEN = Measurement({"folded": 1.25, "unfolded": 0.1 + 0.2}, 9, "unfolded")


def never() -> Measurement:
    raise AssertionError("measured again")


def kept(cache: Path) -> Path:
    (path,) = (cache / "measurements").iterdir()
    return path


def test_what_was_measured_is_taken_from_memory_to_the_last_bit(cache: Path) -> None:
    assert measured_once(SUBJECT, lambda: TAKEN) == TAKEN
    assert measured_once(SUBJECT, never) == replace(TAKEN, remembered=True)
    turned = Subject.of({"unfolded": b"u", "folded": b"f"}, "x[1,77,32]", MACHINE)
    assert list(measured_once(turned, never).medians_ms) == ["unfolded", "folded"], "the forms' order is the caller's"
    assert kept(cache).parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "other",
    [
        Subject.of({"folded": b"F", "unfolded": b"u"}, "x[1,77,32]", MACHINE),
        Subject.of({"folded": b"f", "unfolded": b"u", "lifted": b"l"}, "x[1,77,32]", MACHINE),
        Subject.of({"folded": b"f", "unfolded": b"u"}, "x[1,77,33]", MACHINE),
        replace(SUBJECT, machine=replace(MACHINE, processor="Another CPU")),
        replace(SUBJECT, machine=replace(MACHINE, onnxruntime="1.33.0")),
        replace(SUBJECT, machine=replace(MACHINE, providers=("CUDAExecutionProvider",))),
        replace(SUBJECT, machine=replace(MACHINE, threads=2)),
    ],
    ids=["bytes", "forms", "shapes", "processor", "onnxruntime", "providers", "threads"],
)
def test_a_measurement_of_anything_else_is_made(cache: Path, other: Subject) -> None:
    measured_once(SUBJECT, lambda: TAKEN)
    fresh = Measurement(dict.fromkeys(other.variants, 7.0), 11, "folded")
    assert measured_once(other, lambda: fresh) == fresh


def test_measuring_again_replaces_what_was_remembered(cache: Path) -> None:
    measured_once(SUBJECT, lambda: TAKEN)
    fresh = Measurement({"folded": 1.0, "unfolded": 2.0}, 20, "folded")
    assert measured_once(SUBJECT, lambda: fresh, again=True) == fresh
    assert measured_once(SUBJECT, never) == replace(fresh, remembered=True)


def test_an_export_that_was_first_wins_over_one_that_measured_at_the_same_time(cache: Path) -> None:
    def overtaken() -> Measurement:
        measured_once(SUBJECT, lambda: TAKEN)
        return Measurement({"folded": 1.0, "unfolded": 2.0}, 20, "folded")

    assert measured_once(SUBJECT, overtaken) == replace(TAKEN, remembered=True)


def _race(number: int) -> Measurement:
    return measured_once(SUBJECT, lambda: Measurement({"folded": 1.0 + number, "unfolded": 2.0}, 9, "folded"))


def test_processes_that_begin_together_agree_on_one_measurement(cache: Path) -> None:
    with get_context("spawn").Pool(4) as pool:
        found = pool.map(_race, range(16), chunksize=1)
    assert len({m.medians_ms["folded"] for m in found}) == 1
    assert sum(not m.remembered for m in found) == 1
    assert [p.name for p in kept(cache).parent.iterdir()] == [kept(cache).name], "nothing half-written is left"


def damaged(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        held = json.loads(content)
        change(held)
        return json.dumps(held).encode()

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"\xff\xfe",
        lambda content: b"[" * 50_000,
        lambda content: b"[]",
        lambda content: content + b" " * (1 << 17) + b"x",
        damaged(lambda held: held.update(medians_ms={"folded": 1.0})),
        damaged(lambda held: held.update(medians_ms={"folded": 1.0, "unfolded": float("nan")})),
        damaged(lambda held: held.update(medians_ms={"folded": 1.0, "unfolded": -1.0})),
        damaged(lambda held: held.update(medians_ms=[1.0, 2.0])),
        damaged(lambda held: held.update(medians_ms={"folded": 1.0, "unfolded": 10**400})),
        damaged(lambda held: held.update(fastest="lifted")),
        damaged(lambda held: held.update(fastest=["folded"])),
        damaged(lambda held: held.update(rounds="many")),
        damaged(lambda held: held.update(schema=0)),
        damaged(lambda held: held.update(shapes="x[1,77,31]")),
        damaged(lambda held: held.pop("machine")),
    ],
)
def test_a_damaged_measurement_is_made_again_and_mended(
    cache: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    measured_once(SUBJECT, lambda: TAKEN)
    path = kept(cache)
    path.write_bytes(damage(path.read_bytes()))
    fresh = Measurement({"folded": 1.0, "unfolded": 2.0}, 20, "folded")
    with caplog.at_level(logging.DEBUG, "normfold"):
        assert measured_once(SUBJECT, lambda: fresh) == fresh
    assert measured_once(SUBJECT, never) == replace(fresh, remembered=True)
    assert not [r for r in caplog.records if r.levelno > logging.DEBUG]


def test_a_cache_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    for place in (tmp_path / "file", Path("/proc/no/such/place")):
        monkeypatch.setenv("NORMFOLD_CACHE_DIR", str(place))
        with caplog.at_level(logging.DEBUG, "normfold"):
            assert measured_once(SUBJECT, lambda: TAKEN) == TAKEN
            assert measured_once(SUBJECT, lambda: TAKEN) == TAKEN
    assert {r.levelno for r in caplog.records} == {logging.DEBUG}


def test_a_pipe_in_the_place_of_a_measurement_is_not_waited_for(cache: Path) -> None:
    measured_once(SUBJECT, lambda: TAKEN)
    path = kept(cache)
    path.unlink()
    os.mkfifo(path)
    assert measured_once(SUBJECT, lambda: TAKEN) == TAKEN


def test_a_folder_in_the_place_of_a_measurement_is_no_error(cache: Path) -> None:
    (cache / "measurements" / f"{SUBJECT.digest}.json").mkdir(parents=True)
    assert measured_once(SUBJECT, lambda: TAKEN) == TAKEN


def test_a_file_system_without_links_keeps_measurements_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    measured_once(SUBJECT, lambda: TAKEN)
    assert measured_once(SUBJECT, never).remembered


def test_without_a_cache_folder_the_measurement_is_made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "cache_folder", lambda part: None)
    assert measured_once(SUBJECT, lambda: TAKEN) == TAKEN
    assert not cache.exists()
