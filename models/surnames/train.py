"""Train the surname network: ``python -m normfold.models.surnames.train --data surnames.csv --out FOLDER``.

The figures are taken on test surnames that neither training nor any choice has seen: the settings below were chosen on
the validation surnames, and the weights are those after the last epoch.
"""

from __future__ import annotations

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
from normfold.models.surnames.dataset import Row, Split, read, split
from normfold.models.surnames.network import SurnameCNN
from normfold.models.surnames.vectorizer import UNKNOWN, Vectorizer

BATCH = 128
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 2e-2
#: Share of characters that training shows as unknown, so that the network can do with an unknown character.
UNKNOWN_SHARE = 0.05
#: Half the data are one class. Training adds this much of the log of each class's frequency to its logit (Menon et al.
#: 2020, arXiv:2007.07314), so that the network's own logits need not carry it and rare classes are answered more often.
LOGIT_ADJUSTMENT = 0.5
#: Nationalities that get a surname in samples.json.
SAMPLES = 12


def train(
    network: SurnameCNN,
    vectorizer: Vectorizer,
    rows: list[Row],
    labels: tuple[str, ...],
    epochs: int,
    console: Console,
    seed: int = 0,
) -> list[float]:
    """Train ``network`` in place with AdamW and a one-cycle learning rate; return the mean loss of every epoch."""
    random = recipe.start(seed)
    indices = torch.from_numpy(vectorizer.indices([row.surname for row in rows]))
    classes = torch.from_numpy(class_indices(rows, labels))
    frequency = torch.bincount(classes, minlength=len(labels)).clamp(min=1) / len(classes)
    adjustment = LOGIT_ADJUSTMENT * frequency.log()
    one_hot = torch.cat(
        [torch.eye(len(vectorizer.tokens)), torch.zeros(1, len(vectorizer.tokens))]
    )  # -1 is a zero column
    unknown = vectorizer.tokens.index(UNKNOWN)
    batch = min(BATCH, len(rows))
    steps = len(rows) // batch  # whole batches only, they are shuffled anew every epoch
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps, pct_start=0.2)
    network.train()
    losses: list[float] = []
    note: dict[str, str] = {}
    for _ in recipe.epochs(epochs, console, note):
        order = torch.split(torch.randperm(len(rows), generator=random)[: steps * batch], batch)
        total = 0.0
        for chosen in order:
            columns = hide(indices[chosen], unknown, random)
            logits = network(one_hot[columns].transpose(1, 2))
            loss = F.cross_entropy(logits + adjustment, classes[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        losses.append(total / steps)
        note["text"] = f"loss {losses[-1]:.4f}"
    return losses


def hide(indices: Tensor, unknown: int, random: torch.Generator) -> Tensor:
    """Return ``indices`` (N, L) with ``UNKNOWN_SHARE`` of the characters replaced by ``unknown``."""
    chosen = (torch.rand(indices.shape, generator=random) < UNKNOWN_SHARE) & (indices > unknown)
    return torch.where(chosen, unknown, indices)


def class_indices(rows: list[Row], labels: tuple[str, ...]) -> Indices:
    """Return the place of each row's nationality in ``labels``, (N,)."""
    return np.array([labels.index(row.nationality) for row in rows], dtype=np.int64)


def predict(network: nn.Module, vectorizer: Vectorizer, rows: list[Row]) -> Indices:
    """Return the class of each row's surname as ``network`` in inference sees it, (N,)."""
    network.eval()
    with torch.inference_mode():
        parts = [network(torch.from_numpy(vectorizer([row.surname for row in part]))) for part in _parts(rows, 512)]
        answer: Indices = torch.cat(parts).argmax(dim=1).numpy()
    return answer


def _parts(rows: list[Row], size: int) -> list[list[Row]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def write(
    out: Path, network: SurnameCNN, vectorizer: Vectorizer, labels: tuple[str, ...], test: list[Row], predicted: Indices
) -> None:
    """Write checkpoint, labels, vocabulary and samples into ``out``.

    The samples are the first test row, in the split's order, of each of the most frequent nationalities, right or not.
    """
    truth = class_indices(test, labels)
    frequent = np.argsort(-np.bincount(truth, minlength=len(labels)), kind="stable")[:SAMPLES]
    chosen = sorted(int(np.flatnonzero(truth == c)[0]) for c in frequent if (truth == c).any())
    samples = [
        {"surname": test[i].surname, "nationality": test[i].nationality, "predicted": labels[predicted[i]]}
        for i in chosen
    ]
    recipe.write_labels(out / "labels.txt", labels)
    recipe.write_json(out / "vocabulary.json", vectorizer.tokens)
    recipe.write_json(out / "samples.json", samples)
    recipe.write_checkpoint(out / "surnames.safetensors", network)


def baselines(sets: Split, labels: tuple[str, ...]) -> dict[str, Indices]:
    """Return by name what each baseline answers for the test surnames."""
    known, asked = ([row.surname for row in rows] for rows in (sets.train, sets.test))
    classes = class_indices(sets.train, labels)
    answers = {"majority class": baseline.majority(classes, len(asked))}
    if find_spec("sklearn") is None:
        return answers
    for markers in (False, True):
        for balanced in (False, True):
            name = "logistic regression" + (", markers" if markers else "") + (", balanced" if balanced else "")
            answers[name] = baseline.logistic_regression(known, classes, asked, markers=markers, balanced=balanced)
    return answers


def figures(answers: dict[str, Indices], truth: Indices, labels: tuple[str, ...]) -> tuple[Table, Table]:
    """Return a table of the scores of each classifier, and one of the F1 of each class by the last of them."""
    scores = Table("test set", "accuracy", "macro-F1")
    for name, predicted in answers.items():
        scores.add_row(name, f"{accuracy(truth, predicted):.3f}", f"{macro_f1(truth, predicted, len(labels)):.3f}")
    classes = Table("nationality", "test surnames", "F1")
    f1 = f1_per_class(truth, list(answers.values())[-1], len(labels))
    for label, count, score in zip(labels, np.bincount(truth, minlength=len(labels)), f1, strict=True):
        classes.add_row(label, str(count), f"{score:.3f}")
    return scores, classes


@click.command()
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="CSV file with the columns surname,nationality."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write to.")
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, help="Of weights, shuffles and dropout; the split has its own.")
def main(data: Path, out: Path, epochs: int, seed: int) -> None:
    """Train the surname network, write it, then print its figures on the test surnames beside the baselines."""
    console = Console()
    try:
        sets = split(read(data))
    except DataError as error:
        raise click.ClickException(str(error)) from error
    labels = tuple(sorted({row.nationality for row in sets.train}))
    vectorizer = Vectorizer.of_names(row.surname for row in sets.train)
    torch.manual_seed(seed)
    network = SurnameCNN(characters=len(vectorizer.tokens), classes=len(labels))
    train(network, vectorizer, sets.train, labels, epochs, console, seed)
    predicted = predict(network, vectorizer, sets.test)
    write(out, network, vectorizer, labels, sets.test, predicted)
    console.print(f"wrote surnames.safetensors, labels.txt, vocabulary.json and samples.json to {out}")
    console.print(f"{len(sets.train)} training, {len(sets.validation)} validation, {len(sets.test)} test rows")
    truth = class_indices(sets.validation, labels)
    validated = predict(network, vectorizer, sets.validation)
    console.print(
        f"validation: accuracy {accuracy(truth, validated):.3f}, macro-F1 {macro_f1(truth, validated, len(labels)):.3f}"
    )
    for table in figures(baselines(sets, labels) | {"network": predicted}, class_indices(sets.test, labels), labels):
        console.print(table)
    if find_spec("sklearn") is None:
        console.print("no logistic regression: it needs scikit-learn (pip install scikit-learn)")
    negative = ", ".join(f"{name} {n}/{of}" for name, (n, of) in recipe.negative_gammas(network).items())
    console.print(f"negative gamma: {negative}")


if __name__ == "__main__":
    main()
