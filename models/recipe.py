"""Functions that both training recipes use: a progress bar, reproducible randomness, writing the files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from torch import nn

from normfold.whole_file import write_whole


@contextmanager
def reproducible(seed: int) -> Iterator[torch.Generator]:
    """Give a generator for shuffles; in the block torch is seeded and runs deterministic kernels on one thread.

    The order of a parallel sum is not fixed; on one thread the same seed gives the same weights. After the block the
    number of threads and the choice of kernels are as before.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    try:
        yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def epochs(count: int, console: Console, note: dict[str, str]) -> Iterator[int]:
    """Yield 0 to ``count - 1`` under a progress bar that shows ``note["text"]``, which the loop's body may change."""
    columns = (
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(note.get("text", ""), total=count)
        for epoch in range(count):
            yield epoch
            progress.update(task, advance=1, description=note.get("text", ""))


def average(mean: nn.Module, network: nn.Module, step: int) -> None:
    """Move weights and running statistics of ``mean`` towards those of ``network`` after ``step`` (1, 2, ...) steps.

    This is polynomial-decay averaging with eta = 8: a mean over about the last ninth of all steps (Shamir, Zhang 2013,
    arXiv:1212.1824, section 4). It has the effect of a falling learning rate.
    """
    share = 9 / (step + 8)
    with torch.no_grad():
        for into, value in zip(mean.state_dict().values(), network.state_dict().values(), strict=True):
            if into.is_floating_point():
                into.lerp_(value, share)
            else:
                into.copy_(value)


def write_checkpoint(path: Path, network: nn.Module) -> None:
    """Write the network's ``state_dict`` as safetensors."""
    _write(path, save({key: value.detach().contiguous() for key, value in network.state_dict().items()}))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented UTF-8 JSON."""
    _write(path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def write_labels(path: Path, labels: tuple[str, ...]) -> None:
    """Write one label in each line, in the order of the network's outputs."""
    _write(path, "".join(f"{label}\n" for label in labels).encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def negative_gammas(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Return for every BatchNorm, by name, how many values of its gamma are negative, and how many there are."""
    norms = ((name, module) for name, module in network.named_modules() if isinstance(module, nn.BatchNorm1d))
    return {name: (int((norm.weight < 0).sum()), norm.num_features) for name, norm in norms}
