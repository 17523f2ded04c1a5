"""Export and serve the two trained networks, and make inputs for them from real samples."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normfold.models import gunpoint, surnames
from normfold.models.surnames.vectorizer import Vectorizer

MODELS = ("surnames", "gunpoint")


def export_both(repository: Path) -> None:
    """Export both networks into a repository. Raises ExportError."""
    from normfold.export.pipeline import export_model
    from normfold.export.request import ExportRequest

    tokens = len(Vectorizer.load().tokens)
    for name, package, takes in (
        ("surnames", surnames, f"x=FP32[N,{tokens},L]"),
        ("gunpoint", gunpoint, "x=FP32[N,1,L]"),
    ):
        request = ExportRequest(
            source=package.FACTORY,
            repository=repository,
            name=name,
            inputs=(takes,),
            weights=package.CHECKPOINT,
            labels=package.LABELS,
        )
        export_model(request)


def inputs(model: str, batch: int) -> NDArray[np.float32]:
    """Return a batch of the model's real samples, repeated if there are too few."""
    if model == "surnames":
        names = [sample.surname for sample in surnames.load_samples()]
        return Vectorizer.load()([names[i % len(names)] for i in range(batch)])
    series = [sample.series for sample in gunpoint.load_samples()]
    return np.concatenate([series[i % len(series)] for i in range(batch)])


@contextlib.contextmanager
def served(repository: Path) -> Iterator[tuple[str, int]]:
    """Run ``normfold serve`` on a free port; give its address and process id. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "normfold", "serve", "--repository", str(repository), "--listen", "127.0.0.1:0"]
    # One worker, so that its CPU time is that of one process; nobody reads what it logs of requests that fail.
    command += ["--workers", "1", "--log-level", "error"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert server.stdout is not None
        lines: list[str] = []
        for line in server.stdout:
            lines.append(line)
            if found := re.match(r"listening on (\S+) \(gRPC\), ready", line):
                yield found[1], server.pid
                break
        else:
            raise RuntimeError("normfold serve did not start:\n" + "".join(lines))
    finally:
        server.terminate()
        try:
            server.wait(timeout=40)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
