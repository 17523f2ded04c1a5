"""The two recipes on generated data: they learn, write loadable files, and refuse bad data without a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from safetensors.torch import load_file

from normfold.models import gunpoint, recipe, surnames
from normfold.models.gunpoint import train as gunpoint_train
from normfold.models.gunpoint.dataset import LabelledSeries
from normfold.models.gunpoint.network import InceptionTime
from normfold.models.surnames import train as surnames_train
from normfold.models.surnames.dataset import Row
from normfold.models.surnames.network import SurnameCNN
from normfold.models.surnames.vectorizer import Vectorizer

ENDINGS = {"Greek": "opoulos", "Polish": "czyk", "Russian": "enko"}
STEMS = [first + vowel + last for first in "bdgkmprst" for vowel in "aeiou" for last in "lnr"]
ROWS = [Row(stem.title() + ending, nationality) for stem in STEMS for nationality, ending in ENDINGS.items()]
LABELS = tuple(ENDINGS)
QUIET = Console(quiet=True)


def waves(count: int, length: int = 40) -> LabelledSeries:
    """Sine waves with one period and with two periods, with noise."""
    random = np.random.default_rng(0)
    classes = np.arange(count, dtype=np.int64) % 2
    angle = 2 * np.pi * (classes[:, None] + 1) * np.arange(length) / length
    series = np.sin(angle) + 0.1 * random.standard_normal((count, length))
    return LabelledSeries(series[:, None, :].astype(np.float32), classes)


def write_ts(file: Path, data: LabelledSeries) -> None:
    lines = [",".join(map(str, s[0])) + f":{c + 1}" for s, c in zip(data.series, data.classes, strict=True)]
    file.write_text("@problemName waves\n@data\n" + "\n".join(lines) + "\n", encoding="utf-8")


def test_training_on_surnames_reduces_the_loss_and_repeats_itself() -> None:
    vectorizer = Vectorizer.of_names(row.surname for row in ROWS)
    runs = []
    for _ in range(2):
        with recipe.reproducible(0) as random:
            network = SurnameCNN(characters=len(vectorizer.tokens), classes=len(LABELS))
            losses = surnames_train.train(network, vectorizer, ROWS, LABELS, 3, random, QUIET)
        runs.append((losses, network.classifier.weight))
    assert runs[0][0][-1] < runs[0][0][0] / 2
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])


def test_training_on_series_reduces_the_loss() -> None:
    with recipe.reproducible(0) as random:
        network = InceptionTime(filters=4, depth=3)
        losses = gunpoint_train.train(network, waves(32), 8, random, QUIET)
    assert losses[-1] < losses[0] / 2


def test_the_surname_recipe_writes_what_can_be_loaded_and_prints_its_figures(tmp_path: Path) -> None:
    data, out = tmp_path / "names.csv", tmp_path / "out"
    data.write_text("surname,nationality\n" + "".join(f"{r.surname},{r.nationality}\n" for r in ROWS), encoding="utf-8")
    result = CliRunner().invoke(surnames_train.main, ["--data", str(data), "--out", str(out), "--epochs", "3"])
    assert result.exit_code == 0, result.output
    for printed in (
        "macro-F1",
        "majority class",
        "logistic regression, markers",
        "network",
        "negative gamma",
        "Polish",
    ):
        assert printed in result.output
    vectorizer = Vectorizer.load(out / "vocabulary.json")
    assert surnames.load_labels(out / "labels.txt") == LABELS
    network = SurnameCNN(characters=len(vectorizer.tokens), classes=len(LABELS))
    network.load_state_dict(load_file(out / "surnames.safetensors"), strict=True)
    samples = surnames.load_samples(out / "samples.json")
    predicted = network.eval()(torch.from_numpy(vectorizer([s.surname for s in samples]))).argmax(dim=1)
    assert [LABELS[int(i)] for i in predicted] == [s.predicted for s in samples]
    assert {path.name for path in out.iterdir()} == {
        "labels.txt",
        "samples.json",
        "surnames.safetensors",
        "vocabulary.json",
    }


def test_the_gunpoint_recipe_writes_what_can_be_loaded_and_prints_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("GunPoint_TRAIN.ts", "GunPoint_TEST.ts"):
        write_ts(tmp_path / name, waves(16))
    result = CliRunner().invoke(gunpoint_train.main, ["--data", str(tmp_path), "--out", str(out), "--epochs", "2"])
    assert result.exit_code == 0, result.output
    for printed in ("test, 16 series: accuracy", "F1 of Gun-Draw", "negative gamma"):
        assert printed in result.output
    network = InceptionTime()
    network.load_state_dict(load_file(out / "gunpoint.safetensors"), strict=True)
    labels, samples = gunpoint.load_labels(out / "labels.txt"), gunpoint.load_samples(out / "samples.json")
    assert len(samples) == 6
    for sample in samples:
        assert labels[int(network.eval()(torch.from_numpy(sample.series)).argmax())] == sample.predicted


@pytest.mark.parametrize(
    ("module", "content", "message"),
    [
        ("surnames", None, "no such file; give a CSV file with the columns surname,nationality"),
        ("surnames", "name,country\nRao,India\n", "no column surname or nationality; the first line is name, country"),
        ("surnames", "surname,nationality\nRao,India\n", "holds one nationality, India; a classifier needs two"),
        (
            "surnames",
            "surname,nationality\nRao,India\nMcMahan,Ireland\n",
            "2 rows leave the validation or test set empty",
        ),
        ("gunpoint", None, "GunPoint_TRAIN.ts: no such file"),
    ],
)
def test_bad_data_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, module: str, content: str | None, message: str
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    if content is not None:
        data.write_text(content, encoding="utf-8")
    recipe_module = {"surnames": surnames_train, "gunpoint": gunpoint_train}[module]
    result = CliRunner().invoke(recipe_module.main, ["--data", str(data), "--out", str(out)])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.output.startswith(f"Error: {data}")
    assert message in result.output
    assert not out.exists()


@pytest.mark.parametrize("module", ["surnames", "gunpoint"])
def test_a_recipe_run_as_a_module_explains_itself(module: str) -> None:
    command = [sys.executable, "-m", f"normfold.models.{module}.train"]
    missing = subprocess.run(command, capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert "Missing option '--data'" in missing.stderr
    assert "Traceback" not in missing.stderr
