"""A PyTorch module as an origin: its weights are loaded, float64 gives its exact answer, ``torch.export`` its graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from normfold.export.capture.capture import capture
from normfold.export.capture.capture_errors import refuse_training_modules
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.errors import InputSpecError
from normfold.export.inputs.specs import InputSpec
from normfold.export.sources.origin import Arrays, Origin, Request, Run
from normfold.export.sources.source import load_source
from normfold.export.sources.weights import Checkpoint, load_into, read_checkpoint
from normfold.protos.datatypes import by_name

__all__ = ["DATATYPES", "exact", "open_module"]

#: The datatypes that an input may have, by their names in the protocol.
DATATYPES = {
    torch.float32: "FP32",
    torch.float64: "FP64",
    torch.float16: "FP16",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.int16: "INT16",
    torch.int8: "INT8",
    torch.uint8: "UINT8",
    torch.bool: "BOOL",
}


def open_module(request: Request, described: Sequence[InputSpec]) -> Origin:
    """Load the module and its weights and return it as an origin with the inputs ``described``."""
    torch.manual_seed(0)  # so that a factory without --weights makes the same network each time
    source = load_source(request.source, request.arguments)
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()
    if isinstance(request.source, str):
        notes = ("no --weights: the network was exported with its initial weights",)
    if request.weights is not None:
        checkpoint = read_checkpoint(request.weights, source.network.state_dict())
        notes = (*checkpoint.notes, *load_into(source.network, checkpoint, request.weights))
    refuse_training_modules(source.network)
    network = NamedNetwork(source.network, [s.name for s in described])
    specs = tuple(
        _with_values(_with_datatype(s, network.dtype, bool(request.inputs)), source.network) for s in described
    )
    return Origin(
        name=source.name,
        sha256=source.sha256,
        weights=request.weights.name if request.weights else "",
        weights_sha256=checkpoint.sha256 if checkpoint else "",
        specs=specs,
        run=network.run,
        reference=lambda inputs: exact(network, inputs),
        graph=lambda specs, sizes, opset: capture(network, specs, sizes, opset),
        notes=(*source.notes, *notes),
    )


def exact(network: NamedNetwork, inputs: Arrays) -> tuple[Run, str, tuple[str, ...]]:
    """Return the network in float64; where its code works in float32 only, the network as it is and a note."""
    double = NamedNetwork(copy.deepcopy(network.network).double(), network.names)
    try:
        double.run(inputs)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        note = f"the network does not run in float64 ({reason}); the reference is PyTorch in float32"
        return network.run, "PyTorch, float32", (note,)
    return double.run, "PyTorch, float64", ()


def _with_datatype(spec: InputSpec, dtype: torch.dtype, given: bool) -> InputSpec:
    """Give a float input the network's own datatype. Raises InputSpecError where --input asked for another."""
    own = by_name(DATATYPES.get(dtype, "FP32"))
    if spec.datatype.dtype.kind != "f" or spec.datatype == own:
        return spec
    if given:
        raise InputSpecError(
            f"input '{spec.name}' is given as {spec.datatype.name}, but the network computes in {own.name}: write "
            f"--input {replace(spec, datatype=own)}"
            + (", and --dtype fp16 for the arithmetic inside" if spec.datatype.name == "FP16" else "")
        )
    return replace(spec, datatype=own)


def _with_values(spec: InputSpec, network: nn.Module) -> InputSpec:
    """Give integer inputs the range of indices that every embedding of the network accepts."""
    if spec.values is not None or spec.datatype.dtype.kind not in "iu":
        return spec
    rows = [m.num_embeddings for m in network.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return replace(spec, values=(0, min(rows) - 1)) if rows else spec
