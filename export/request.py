"""One export as a person asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from normfold.export.capture.capture import DEFAULT_OPSET
from normfold.export.choices import AUTO
from normfold.export.inputs.samples import SampleFile
from normfold.export.sources.ends import Ends

__all__ = ["ExportRequest"]


@dataclass(frozen=True)
class ExportRequest:
    """One export as the user asks for it; the fields are the options of ``normfold export``."""

    source: str | nn.Module
    repository: Path
    name: str
    #: "x=FP32[N,77,L]"; may be empty if a sample shows the shapes.
    inputs: Sequence[str] = ()
    weights: Path | None = None
    #: Which network of a file of weights that holds several.
    weights_key: str = ""
    #: The SHA-256 that the file of weights must have, in hexadecimal; "": any.
    weights_sha256: str = ""
    #: Export a class with the random weights that it begins with.
    untrained: bool = False
    #: A file, or the names of the classes themselves.
    labels: Path | Sequence[str] | None = None
    samples: Sequence[Path | SampleFile] = ()
    #: Real inputs that int8 is not calibrated on: they measure what fewer bits cost.
    test_samples: Sequence[Path | SampleFile] = ()
    #: Samples may hold NaN and infinity.
    allow_nonfinite: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    #: The arithmetic before and after the network.
    ends: Ends = field(default_factory=Ends)
    #: None: the next free version.
    version: int | None = None
    overwrite: bool = False
    opset: int = DEFAULT_OPSET
    #: "fp16", "bf16" or "int8"; None: float32.
    precision: str | None = None
    #: Publish a reduced precision even where it is slower than float32 on this machine.
    even_if_slower: bool = False
    #: The variant to publish, one of :data:`normfold.export.choices.VARIANTS`, or "auto": the fastest on this
    #: machine.
    variant: str = AUTO
    #: Time the variants again, even where an earlier export has timed them.
    remeasure: bool = False
    #: Dimension -> the size to time the variants at, in place of the one that is traced.
    time_at: Mapping[str, int] = field(default_factory=dict)
    #: The threads that share the work of a run while the variants are timed; by default a server has one.
    threads: int = 1
    #: Fold what mathematics allows, also where onnxruntime becomes slower; without ``variant`` the folded one is meant.
    fold_all: bool = False
