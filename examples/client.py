"""Ask a running server for the nationality of surnames: `python examples/client.py Garcia Nakamura`.

Start one first: `make demo`, then `normfold serve --repository repository`.
"""

from __future__ import annotations

import argparse

from normfold import Client, ClientError
from normfold.models.surnames.vectorizer import Vectorizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("surnames", nargs="*", default=["Garcia", "Nakamura"])
parser.add_argument("--address", default="127.0.0.1:8001")
given = parser.parse_args()

x = Vectorizer.load()(given.surnames)  # one-hot, (names, characters, length)
try:
    with Client(given.address) as client:
        print(client.model_metadata("surnames"))
        logits = client.infer("surnames", {"x": x})["output"]  # NumPy arrays by name, in and out
        print("logits", logits.dtype, logits.shape)
        for name, best in zip(given.surnames, client.classify("surnames", {"x": x}, top=3), strict=True):
            print(f"{name}: " + ", ".join(f"{one.label} {one.score:.2f}" for one in best))
except ClientError as error:  # no server, no such model: the message says what to do
    raise SystemExit(f"Error: {error}") from None
