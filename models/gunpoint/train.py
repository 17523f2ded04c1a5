"""Train InceptionTime on GunPoint: ``python -m normfold.models.gunpoint.train --data FOLDER --out FOLDER``.

There are only fifty training series, so none are set aside for validation, and nothing is selected: the weights after
the last epoch are written. The test series are used for the figures only.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.models import recipe
from normfold.models.errors import DataError
from normfold.models.gunpoint.dataset import MOTIONS, LabelledSeries, read_folder
from normfold.models.gunpoint.network import InceptionTime
from normfold.models.scores import Indices, accuracy, f1_per_class

BATCH = 16
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-2
#: Training shifts, scales and offsets each series by about this much every time, as if it was recorded again.
SHIFT_FRAMES, SCALE_DEVIATION, OFFSET_DEVIATION = 8, 0.1, 0.1
#: Number of test series of each class in samples.json: the first ones of the file.
SAMPLES_PER_CLASS = 3


def train(
    network: InceptionTime, data: LabelledSeries, epochs: int, random: torch.Generator, console: Console
) -> list[float]:
    """Train ``network`` in place with AdamW and a one-cycle learning rate; return the mean loss of every epoch."""
    series, classes = torch.from_numpy(data.series), torch.from_numpy(data.classes)
    batch = min(BATCH, len(series))
    steps = len(series) // batch  # whole batches only: BatchNorm needs more than one series
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps)
    network.train()
    losses: list[float] = []
    note: dict[str, str] = {}
    for _ in recipe.epochs(epochs, console, note):
        order = torch.split(torch.randperm(len(series), generator=random)[: steps * batch], batch)
        total = 0.0
        for chosen in order:
            loss = F.cross_entropy(network(vary(series[chosen], random)), classes[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item()
        losses.append(total / steps)
        note["text"] = f"loss {losses[-1]:.4f}"
    return losses


def vary(series: Tensor, random: torch.Generator) -> Tensor:
    """Return ``series`` (N, 1, L), each shifted in time, scaled and offset at random; a shift repeats the end value."""
    n, _, length = series.shape
    shift = torch.randint(-SHIFT_FRAMES, SHIFT_FRAMES + 1, (n, 1), generator=random)
    frames = (torch.arange(length) + shift).clamp(0, length - 1)
    scale = 1 + SCALE_DEVIATION * torch.randn(n, 1, 1, generator=random)
    offset = OFFSET_DEVIATION * torch.randn(n, 1, 1, generator=random)
    return series.gather(2, frames[:, None, :]) * scale + offset


def predict(network: nn.Module, series: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Indices:
    """Return the classes (N,) that ``network`` in inference mode gives to ``series`` (N, 1, L)."""
    network.eval()
    with torch.inference_mode():
        answer: Indices = network(torch.from_numpy(series)).argmax(dim=1).numpy()
    return answer


def write(out: Path, network: InceptionTime, test: LabelledSeries, predicted: Indices) -> None:
    """Write checkpoint, labels and samples into ``out``."""
    motions = tuple(MOTIONS.values())
    chosen = sorted(i for c in range(len(motions)) for i in np.flatnonzero(test.classes == c)[:SAMPLES_PER_CLASS])
    samples = [
        {
            "motion": motions[test.classes[i]],
            "predicted": motions[predicted[i]],
            "series": [round(float(value), 6) for value in test.series[i, 0]],
        }
        for i in chosen
    ]
    recipe.write_labels(out / "labels.txt", motions)
    recipe.write_json(out / "samples.json", samples)
    recipe.write_checkpoint(out / "gunpoint.safetensors", network)


@click.command()
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder with GunPoint_TRAIN.ts and GunPoint_TEST.ts."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write to.")
@click.option("--epochs", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True)
def main(data: Path, out: Path, epochs: int, seed: int) -> None:
    """Train InceptionTime on GunPoint, write it, and print its figures on the standard test set."""
    console = Console()
    try:
        training, test = read_folder(data)
    except DataError as error:
        raise click.ClickException(str(error)) from error
    with recipe.reproducible(seed) as random:
        network = InceptionTime()
        train(network, training, epochs, random, console)
    predicted = predict(network, test.series)
    write(out, network, test, predicted)
    console.print(f"wrote {out / 'gunpoint.safetensors'}, labels.txt, samples.json")
    f1 = f1_per_class(test.classes, predicted, len(MOTIONS))
    scores = ", ".join(f"F1 of {motion} {score:.3f}" for motion, score in zip(MOTIONS.values(), f1, strict=True))
    majority = np.bincount(training.classes).argmax()
    console.print(f"test, {len(predicted)} series: accuracy {accuracy(test.classes, predicted):.4f}, {scores}")
    console.print(
        f"always {tuple(MOTIONS.values())[majority]}: accuracy {float(np.mean(test.classes == majority)):.4f}"
    )
    negative = ", ".join(f"{name} {n}/{of}" for name, (n, of) in recipe.negative_gammas(network).items())
    console.print(f"negative gamma: {negative}")


if __name__ == "__main__":
    main()
