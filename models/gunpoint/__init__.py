"""The network that tells Gun-Draw from Point by the motion of a hand: its files, labels and test series. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_HERE = Path(__file__).parent

#: The factory, as an argument of ``normfold export``; it takes no arguments itself.
FACTORY = "normfold.models.gunpoint.network:InceptionTime"
#: The trained weights as safetensors; keys as in ``InceptionTime().state_dict()``.
CHECKPOINT = _HERE / "gunpoint.safetensors"
#: One class in each line, in the order of the network's outputs.
LABELS = _HERE / "labels.txt"
#: Series of the test set with their class and the network's answer.
SAMPLES = _HERE / "samples.json"


@dataclass(frozen=True)
class MotionSample:
    """A series that the network was not trained on."""

    #: x-coordinate of the hand's centroid over 150 frames, mean 0 and variance 1; FP32, (1, 1, 150).
    series: NDArray[np.float32]
    #: The class in the data.
    motion: str
    #: The answer of the checkpoint in this folder.
    predicted: str


def load_labels(path: Path = LABELS) -> tuple[str, ...]:
    """Return the classes in the order of the network's outputs."""
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1])


def load_samples(path: Path = SAMPLES) -> tuple[MotionSample, ...]:
    """Return the series of ``samples.json``, each with its class and the checkpoint's answer."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        MotionSample(np.array(entry["series"], np.float32).reshape(1, 1, -1), entry["motion"], entry["predicted"])
        for entry in entries
    )
