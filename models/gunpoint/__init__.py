"""Gun-Draw or Point from the motion of a hand: where its files are, its labels and a few test series. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_HERE = Path(__file__).parent

#: The factory to name to ``normfold export``; it takes no arguments.
FACTORY = "normfold.models.gunpoint.network:InceptionTime"
#: The trained weights, safetensors, keys as in ``InceptionTime().state_dict()``.
CHECKPOINT = _HERE / "gunpoint.safetensors"
#: One class a line, in the order of the network's outputs.
LABELS = _HERE / "labels.txt"
#: Series of the test set with their class and the network's answer.
SAMPLES = _HERE / "samples.json"


@dataclass(frozen=True)
class MotionSample:
    """A series that the network was not trained on."""

    #: x-coordinate of the hand's centroid over 150 frames, mean 0 and variance 1; FP32, (1, 1, 150).
    series: NDArray[np.float32]
    #: What the data say.
    motion: str
    #: What the committed checkpoint answers.
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
