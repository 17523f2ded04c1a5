"""A network in whichever form it came, seen as what the export needs: inputs, an exact answer, and a graph.

FILE.py:NAME, package.module:NAME    a PyTorch module       :mod:`normfold.export.sources.module_origin`
FILE.pt2                             a torch.export program :mod:`normfold.export.sources.program_origin`
FILE.onnx                            any exporter's graph   :mod:`normfold.export.sources.onnx_origin`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.errors import InputSpecError, SourceError
from normfold.export.inputs.samples import Sample
from normfold.export.inputs.specs import InputSpec, parse_inputs, specs_of_samples

__all__ = ["Arrays", "Origin", "Request", "Run", "describe", "open_origin"]

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Request:
    """What a person says of the network."""

    source: str
    weights: Path | None = None
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
    #: Run it once, in its own precision. Raises where it does not take the inputs.
    run: Run
    #: Make the most exact form of it: how it runs, in which words, and what should be known of it.
    reference: Callable[[Arrays], tuple[Run, str, tuple[str, ...]]]
    #: Write it as a graph with every BatchNorm still in it: specs, sizes to trace with, opset.
    graph: Callable[[Sequence[InputSpec], Mapping[str, int], int], ir.Model]
    notes: tuple[str, ...] = ()


def open_origin(request: Request, samples: Sequence[Sample]) -> Origin:
    """Load the network that ``request`` names. Raises SourceError, CheckpointError, InputSpecError, CaptureError."""
    path = Path(request.source)
    if path.suffix in (".onnx", ".pt2"):
        _refuse_options(request, path)
    if path.suffix == ".onnx":
        from normfold.export.sources.onnx_origin import open_onnx

        return open_onnx(path, parse_inputs(request.inputs))
    if path.suffix == ".pt2":
        from normfold.export.sources.program_origin import open_program

        return open_program(path, parse_inputs(request.inputs))
    if path.suffix in (".pt", ".pth", ".ts", ".torchscript", ".ckpt", ".safetensors") and ":" not in request.source:
        raise SourceError(_not_a_network(path))
    from normfold.export.sources.module_origin import open_module

    return open_module(request, describe(request, samples))


def describe(request: Request, samples: Sequence[Sample]) -> tuple[InputSpec, ...]:
    """The inputs as given, or as the first sample shows them. Raises InputSpecError where neither says."""
    if request.inputs:
        return parse_inputs(request.inputs)
    if not samples:
        raise InputSpecError("say what goes into the network: --input x=FP32[N,77,L], or --sample with an example")
    return specs_of_samples({name or "x": array for name, array in samples[0].arrays.items()})


def _refuse_options(request: Request, path: Path) -> None:
    if not path.is_file():
        raise SourceError(f"no file '{path}'")
    given = "--weights" if request.weights else "--arg" if request.arguments else ""
    if given:
        raise SourceError(f"'{path}' holds its network and its weights itself, so it takes no {given}")


def _not_a_network(path: Path) -> str:
    if path.suffix in (".safetensors", ".ckpt"):
        return (
            f"'{path}' holds weights, not a network: name the code that makes the network and give the weights with "
            f"--weights: normfold export mynets.py:NAME --weights {path}"
        )
    return (
        f"'{path}' is either a file of weights or a TorchScript program. Weights go with the code of their network: "
        f"normfold export mynets.py:NAME --weights {path}. A TorchScript program cannot be captured any more (torch "
        "has "
        "deprecated it): export from the Python code, or where only the program is left, write it as ONNX with "
        "torch.onnx.export(torch.jit.load(…), inputs, 'net.onnx', dynamo=False) and give that file"
    )
