"""Train the surname network: ``python -m normfold.models.surnames.train --data surnames.csv --out FOLDER``.

The settings below were chosen with ``--validate``, which trains on 75 % of the surnames and scores on 10 %. Without it
the network is trained on both parts and scored on the other 15 %, on which no choice depends.
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.models import recipe
from normfold.models.errors import DataError
from normfold.models.scores import Indices, accuracy, f1_per_class, macro_f1
from normfold.models.surnames import baseline
from normfold.models.surnames.dataset import Row, read_split
from normfold.models.surnames.network import SurnameCNN
from normfold.models.surnames.vectorizer import UNKNOWN, Vectorizer, padded_length

BATCH = 128
LEARNING_RATE, WEIGHT_DECAY = 4e-3, 0.1
#: Share of characters that training replaces by the unknown character, so that the network learns to cope with it.
UNKNOWN_SHARE = 0.05
#: Half of the data are one class. Training adds the log of each class's frequency, times this factor, to the logit of
#: the class (Menon et al. 2020, arXiv:2007.07314). The network then need not learn the frequencies, and names rare
#: classes more often.
LOGIT_ADJUSTMENT = 0.5
#: Number of nationalities with a surname in samples.json.
SAMPLES = 12


def train(
    network: SurnameCNN,
    vectorizer: Vectorizer,
    rows: list[Row],
    labels: tuple[str, ...],
    epochs: int,
    random: torch.Generator,
    console: Console,
) -> list[float]:
    """Train ``network`` in place with AdamW, average its last weights, and return the loss of every epoch."""
    indices = torch.from_numpy(vectorizer.indices([row.surname for row in rows]))
    lengths = torch.tensor([padded_length(int(columns)) for columns in (indices >= 0).sum(dim=1)])
    classes = torch.from_numpy(class_indices(rows, labels))
    frequency = torch.bincount(classes, minlength=len(labels)).clamp(min=1) / len(classes)
    adjustment = LOGIT_ADJUSTMENT * frequency.log()
    tokens = len(vectorizer.tokens)
    one_hot = torch.cat([torch.eye(tokens), torch.zeros(1, tokens)])  # the last row, which index -1 gives, is zero
    steps = len(batches(lengths, random))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / steps, total_iters=steps)
    mean = deepcopy(network)
    network.train()
    losses: list[float] = []
    note: dict[str, str] = {}
    for _ in recipe.epochs(epochs, console, note):
        total = 0.0
        for chosen in batches(lengths, random):
            columns = hide(indices[chosen, : int(lengths[chosen[0]])], vectorizer.tokens.index(UNKNOWN), random)
            logits = network(one_hot[columns].transpose(1, 2))
            loss = F.cross_entropy(logits + adjustment, classes[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            warm_up.step()
            recipe.average(mean, network, step=warm_up.last_epoch)
            total += loss.item()
        losses.append(total / steps)
        note["text"] = f"loss {losses[-1]:.4f}"
    network.load_state_dict(mean.state_dict())
    return losses


def batches(lengths: Tensor, random: torch.Generator) -> list[Tensor]:
    """Return the indices of ``lengths`` (N,) in batches of at most ``BATCH`` of equal length, in random order."""
    parts: list[Tensor] = []
    for length in torch.unique(lengths):
        group = torch.nonzero(lengths == length)[:, 0]
        parts.extend(torch.split(group[torch.randperm(len(group), generator=random)], BATCH))
    return [parts[int(i)] for i in torch.randperm(len(parts), generator=random)]


def hide(indices: Tensor, unknown: int, random: torch.Generator) -> Tensor:
    """Return ``indices`` (N, L) with ``UNKNOWN_SHARE`` of the characters replaced by ``unknown``."""
    chosen = (torch.rand(indices.shape, generator=random) < UNKNOWN_SHARE) & (indices > unknown)
    return torch.where(chosen, unknown, indices)


def class_indices(rows: list[Row], labels: tuple[str, ...]) -> Indices:
    """Return the index in ``labels`` of the nationality of each row, (N,)."""
    return np.array([labels.index(row.nationality) for row in rows], dtype=np.int64)


def predict(network: nn.Module, vectorizer: Vectorizer, rows: list[Row]) -> Indices:
    """Return the classes (N,) that ``network`` in inference mode gives to the surnames of the rows."""
    network.eval()
    with torch.inference_mode():
        parts = [network(torch.from_numpy(vectorizer([row.surname for row in part]))) for part in _parts(rows, 512)]
        answer: Indices = torch.cat(parts).argmax(dim=1).numpy()
    return answer


def _parts(rows: list[Row], size: int) -> list[list[Row]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def write(
    out: Path,
    network: SurnameCNN,
    vectorizer: Vectorizer,
    labels: tuple[str, ...],
    asked: list[Row],
    predicted: Indices,
) -> None:
    """Write checkpoint, labels, vocabulary and samples into ``out``.

    The samples have one surname for each of the most frequent nationalities: the first in ``asked`` that has five
    letters or more and occurs under this nationality only. Whether the network's answer is right does not matter.
    """
    truth = class_indices(asked, labels)
    frequent = np.argsort(-np.bincount(truth, minlength=len(labels)), kind="stable")[:SAMPLES]
    occurrences = Counter(row.surname for row in asked)
    clear = np.array([len(row.surname) >= 5 and occurrences[row.surname] == 1 for row in asked])
    chosen = sorted(int(np.flatnonzero((truth == c) & clear)[0]) for c in frequent if ((truth == c) & clear).any())
    samples = [
        {"surname": asked[i].surname, "nationality": asked[i].nationality, "predicted": labels[predicted[i]]}
        for i in chosen
    ]
    recipe.write_labels(out / "labels.txt", labels)
    recipe.write_json(out / "vocabulary.json", vectorizer.tokens)
    recipe.write_json(out / "samples.json", samples)
    recipe.write_checkpoint(out / "surnames.safetensors", network)


def baselines(known_rows: list[Row], asked_rows: list[Row], labels: tuple[str, ...]) -> dict[str, Indices]:
    """Return the answers of each baseline by name, fitted on ``known_rows``, for the surnames of ``asked_rows``."""
    known, asked = ([row.surname for row in rows] for rows in (known_rows, asked_rows))
    classes = class_indices(known_rows, labels)
    answers = {"majority class": baseline.majority(classes, len(asked))}
    if find_spec("sklearn") is None:
        return answers
    for markers in (False, True):
        for balanced in (False, True):
            name = "logistic regression" + (", markers" if markers else "") + (", balanced" if balanced else "")
            answers[name] = baseline.logistic_regression(known, classes, asked, markers=markers, balanced=balanced)
    return answers


def figures(answers: dict[str, Indices], truth: Indices, labels: tuple[str, ...]) -> tuple[Table, Table]:
    """Return a table with the scores of each classifier, and one with the F1 of each class for the last classifier."""
    scores = Table("classifier", "accuracy", "macro-F1")
    for name, predicted in answers.items():
        scores.add_row(name, f"{accuracy(truth, predicted):.3f}", f"{macro_f1(truth, predicted, len(labels)):.3f}")
    classes = Table("nationality", "surnames", "F1")
    f1 = f1_per_class(truth, list(answers.values())[-1], len(labels))
    for label, count, score in zip(labels, np.bincount(truth, minlength=len(labels)), f1, strict=True):
        classes.add_row(label, str(count), f"{score:.3f}")
    return scores, classes


@click.command()
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="CSV file with the columns surname,nationality."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write to.")
@click.option("--epochs", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, help="Of weights, shuffles and dropout; the split has its own.")
@click.option(
    "--validate", is_flag=True, help="Train without the validation rows and score on them; leave the test rows alone."
)
def main(data: Path, out: Path, epochs: int, seed: int, validate: bool) -> None:
    """Train the surname network, write it, and print its figures and those of the baselines on held-out surnames."""
    console = Console()
    try:
        sets, labels = read_split(data)
    except DataError as error:
        raise click.ClickException(str(error)) from error
    known, asked = (sets.train, sets.validation) if validate else (sets.train + sets.validation, sets.test)
    vectorizer = Vectorizer.of_names(row.surname for row in known)
    with recipe.reproducible(seed) as random:
        network = SurnameCNN(characters=len(vectorizer.tokens), classes=len(labels))
        train(network, vectorizer, known, labels, epochs, random, console)
    predicted = predict(network, vectorizer, asked)
    write(out, network, vectorizer, labels, asked, predicted)
    console.print(f"wrote surnames.safetensors, labels.txt, vocabulary.json and samples.json to {out}")
    console.print(f"{len(known)} rows for training, {len(asked)} {'validation' if validate else 'test'} rows:")
    for table in figures(
        baselines(known, asked, labels) | {"network": predicted}, class_indices(asked, labels), labels
    ):
        console.print(table)
    if find_spec("sklearn") is None:
        console.print("no logistic regression: it needs scikit-learn (pip install scikit-learn)")
    negative = ", ".join(f"{name} {n}/{of}" for name, (n, of) in recipe.negative_gammas(network).items())
    console.print(f"negative gamma: {negative}")


if __name__ == "__main__":
    main()
