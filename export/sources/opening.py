"""Open the network that the user names; the suffix of the source decides which kind of origin it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from normfold.export.errors import ExportError, InputSpecError, SourceError
from normfold.export.inputs.samples import SampleFile, fit
from normfold.export.inputs.specs import InputSpec, parse_inputs, specs_of_samples
from normfold.export.sources.module_origin import open_module
from normfold.export.sources.named import require_graph, split_source
from normfold.export.sources.onnx_origin import open_onnx
from normfold.export.sources.origin import Origin, Request
from normfold.export.sources.program_origin import open_program
from normfold.export.sources.source import NO_TORCHSCRIPT
from normfold.export.user_code import place_and_reason

__all__ = ["describe", "open_origin"]


def open_origin(request: Request, samples: Sequence[SampleFile]) -> Origin:
    """Load the network that ``request`` names. Raises SourceError, CheckpointError, InputSpecError or CaptureError."""
    origin = _opened(request, samples)
    for sample in samples:
        _try(origin, sample)
    return origin


def _try(origin: Origin, sample: SampleFile) -> None:
    """Raise InputSpecError where the network does not run with a sample."""
    inputs = fit(sample, origin.specs)
    try:
        origin.run(inputs)
    except ExportError:
        raise
    except Exception as error:
        raise InputSpecError(
            f"sample '{sample.name}': the network does not run with it{place_and_reason(error)}"
        ) from error


def _opened(request: Request, samples: Sequence[SampleFile]) -> Origin:
    if isinstance(request.source, nn.Module):
        return _module(request, samples)
    path = Path(request.source)
    if path.suffix in (".onnx", ".pt2"):
        _refuse_options(request, path)
    if path.suffix == ".onnx":
        return open_onnx(path, parse_inputs(request.inputs))
    if path.suffix == ".pt2":
        return open_program(path, parse_inputs(request.inputs))
    if path.suffix in (".pt", ".pth", ".ts", ".torchscript", ".ckpt", ".safetensors") and ":" not in request.source:
        raise SourceError(_not_a_network(path))
    split_source(request.source)
    return _module(request, samples)


def _module(request: Request, samples: Sequence[SampleFile]) -> Origin:
    """Open a network in Python, with a note where a sample alone has fixed a length, and how to keep it free."""
    origin = open_module(request, describe(request, samples))
    lengths = [spec for spec in origin.specs if len(spec.dims) > 2]
    if request.inputs or not lengths:
        return origin
    spec = lengths[0]
    free = f"{spec.name}={spec.datatype.name}[{','.join(map(str, ('N', *spec.dims[1:-1], 'L')))}]"
    note = (
        f"the length of '{spec.name}' is {spec.dims[-1]}, that of sample '{samples[0].name}', and no other is served; "
        f"to keep it free: --input '{free}'"
    )
    return replace(origin, notes=(*origin.notes, note))


def describe(request: Request, samples: Sequence[SampleFile]) -> tuple[InputSpec, ...]:
    """Return the inputs as given, else as the first sample shows them; the array of a ``.npy`` file has no name.

    Raises InputSpecError where both are missing.
    """
    if request.inputs:
        return parse_inputs(request.inputs)
    if not samples:
        raise InputSpecError("say what goes into the network: --input 'x=FP32[N,77,L]', or --sample with an example")
    return specs_of_samples(samples[0].arrays)


def _refuse_options(request: Request, path: Path) -> None:
    require_graph(path)
    options = {
        "--weights": request.weights,
        "--weights-key": request.weights_key,
        "--weights-sha256": request.weights_sha256,
        "--untrained": request.untrained,
        "--arg": request.arguments,
    }
    given = next((option for option, value in options.items() if value), "")
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
        f"normfold export mynets.py:NAME --weights {path}. As for a TorchScript program, {NO_TORCHSCRIPT}"
    )
