"""Open the network that the user names; the suffix of the source decides which kind of origin it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from normfold.export.errors import InputSpecError, SourceError
from normfold.export.inputs.samples import SampleFile
from normfold.export.inputs.specs import InputSpec, parse_inputs, specs_of_samples
from normfold.export.sources.module_origin import open_module
from normfold.export.sources.onnx_origin import open_onnx
from normfold.export.sources.origin import Origin, Request
from normfold.export.sources.program_origin import open_program

__all__ = ["describe", "open_origin"]


def open_origin(request: Request, samples: Sequence[SampleFile]) -> Origin:
    """Load the network that ``request`` names. Raises SourceError, CheckpointError, InputSpecError or CaptureError."""
    if isinstance(request.source, nn.Module):
        return open_module(request, describe(request, samples))
    path = Path(request.source)
    if path.suffix in (".onnx", ".pt2"):
        _refuse_options(request, path)
    if path.suffix == ".onnx":
        return open_onnx(path, parse_inputs(request.inputs))
    if path.suffix == ".pt2":
        return open_program(path, parse_inputs(request.inputs))
    if path.suffix in (".pt", ".pth", ".ts", ".torchscript", ".ckpt", ".safetensors") and ":" not in request.source:
        raise SourceError(_not_a_network(path))
    return open_module(request, describe(request, samples))


def describe(request: Request, samples: Sequence[SampleFile]) -> tuple[InputSpec, ...]:
    """Return the inputs as given, else as the first sample shows them. Raises InputSpecError where both are missing."""
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
