"""A network as the export needs it, whatever it came from: its inputs, an exact answer, and a graph.

FILE.py:NAME, package.module:NAME    a PyTorch module       :mod:`normfold.export.sources.module_origin`
FILE.pt2                             a torch.export program :mod:`normfold.export.sources.program_origin`
FILE.onnx                            any exporter's graph   :mod:`normfold.export.sources.onnx_origin`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.inputs.specs import InputSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Arrays", "Origin", "Request", "Run"]

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Request:
    """The user's description of the network."""

    #: "mynets.py:SurnameCNN", "net.pt2", "net.onnx", or a network in memory.
    source: str | nn.Module
    weights: Path | None = None
    #: Which network of a file of weights that holds several: a key or a prefix in it.
    weights_key: str = ""
    #: The SHA-256 that the file of weights must have, in hexadecimal; "": any.
    weights_sha256: str = ""
    #: A class without weights is meant, with the random numbers that it begins with.
    untrained: bool = False
    #: "x=FP32[N,77,L]"; may be left out where a sample or the source itself shows the shapes.
    inputs: Sequence[str] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """A network that is ready to be exported."""

    #: "mynets.py:SurnameCNN", and the sha256 of its file and of its weights ("" where there is none).
    name: str
    sha256: str
    weights: str
    weights_sha256: str
    specs: tuple[InputSpec, ...]
    #: Runs the network once in its own precision. Raises where it does not take the inputs.
    run: Run
    #: Returns the most exact reference: the function that runs it, its name, and notes for the user.
    reference: Callable[[Arrays], tuple[Run, str, tuple[str, ...]]]
    #: Writes it as a graph that still holds every BatchNorm; takes specs, sizes to trace with, and the opset.
    graph: Callable[[Sequence[InputSpec], Mapping[str, int], int], ir.Model]
    notes: tuple[str, ...] = ()
    #: From inputs as the network itself sees them to inputs as clients send them, before they are standardised; None
    #: where nothing is standardised.
    raw: Callable[[Arrays], Arrays] | None = None
    #: The ONNX file that it is, as it was read; None for a network of PyTorch.
    content: bytes | None = None
    #: The outputs in which random inputs, as ``specs`` draws them, give numbers alone at some size; in others NaN says
    #: nothing of a size.
    gives_numbers: frozenset[str] = frozenset()
    #: The sizes at which random inputs gave the most numbers: they are tried first. {}: not known.
    numbers_at: Mapping[str, int] = field(default_factory=dict)
    #: Sizes that a program was captured with, by dimension: they are tried where no usual ones fit. {}: not known.
    captured: Mapping[str, int] = field(default_factory=dict)
