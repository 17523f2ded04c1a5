"""The network that infers nationality from the characters of a surname: its files, labels and samples. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent

#: The factory, as an argument of ``normfold export``; it takes no arguments itself.
FACTORY = "normfold.models.surnames.network:SurnameCNN"
#: The trained weights as safetensors; keys as in ``SurnameCNN().state_dict()``.
CHECKPOINT = _HERE / "surnames.safetensors"
#: One nationality in each line, in the order of the network's outputs.
LABELS = _HERE / "labels.txt"
#: The characters the network knows, in the order of its input channels.
VOCABULARY = _HERE / "vocabulary.json"
#: Surnames of the test set with their nationality and the network's answer.
SAMPLES = _HERE / "samples.json"


@dataclass(frozen=True)
class SurnameSample:
    """A surname that the network was not trained on."""

    surname: str
    #: The nationality in the data.
    nationality: str
    #: The answer of the checkpoint in this folder.
    predicted: str


def load_labels(path: Path = LABELS) -> tuple[str, ...]:
    """Return the nationalities in the order of the network's outputs."""
    return tuple(path.read_text(encoding="utf-8").split("\n")[:-1])


def load_samples(path: Path = SAMPLES) -> tuple[SurnameSample, ...]:
    """Return the surnames of ``samples.json``, each with its nationality and the checkpoint's answer."""
    return tuple(SurnameSample(**entry) for entry in json.loads(path.read_text(encoding="utf-8")))
