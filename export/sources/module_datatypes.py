"""In which datatypes a module's floating-point inputs go in: as they are described where it runs so, else in its own.

network in FP16                       FP16: its layers refuse FP32
self.layers(x.half()).float()         FP32, as it was asked for: the network casts its input itself
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from normfold.export.capture.named_network import NamedNetwork, weights_dtype
from normfold.export.errors import InputSpecError, SourceError, StateError
from normfold.export.inputs.sizes import usual_sizes
from normfold.export.inputs.specs import InputSpec, random_inputs
from normfold.protos.datatypes import by_name

__all__ = ["DATATYPES", "in_datatypes", "refuse_weights"]

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


def refuse_weights(network: nn.Module, name: str) -> None:
    """Raise SourceError where the weights are of a type that no input can be, or that onnxruntime does not compute."""
    dtype = weights_dtype(network)
    if dtype not in DATATYPES:
        called = str(dtype).removeprefix("torch.")
        raise SourceError(
            f"the weights of '{name}' are {called}, which no input can be: call .float() on the network in the "
            "code that makes it" + (", and give --dtype bf16 for the arithmetic inside" if called == "bfloat16" else "")
        )
    for path, module in network.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd) and module.weight.dtype == torch.float64:
            raise SourceError(
                f"the convolution '{path}' of '{name}' computes in float64, for which onnxruntime has no convolution: "
                "call network.float() before the export, and leave .double() out of its forward"
            )


def in_datatypes(
    described: Sequence[InputSpec], network: nn.Module, given: bool
) -> tuple[tuple[InputSpec, ...], NamedNetwork]:
    """Return the inputs in the datatypes in which the network runs, and the network as a function of them.

    given: whether --input says the datatypes; those of a sample may become the network's own. Raises InputSpecError
    where the network runs in its own datatype only, and --input asks for another.
    """
    names = [s.name for s in described]
    named = NamedNetwork(network, names)
    own = by_name(DATATYPES.get(named.dtype, "FP32"))
    floats = [s for s in described if s.datatype.dtype.kind == "f"]
    asked = {s.datatype.name for s in floats}
    if asked <= {own.name}:
        return tuple(described), named
    if len(asked) == 1 and (given or asked == {"FP32"}):
        (other,) = (dtype for dtype, name in DATATYPES.items() if name in asked)
        as_asked = NamedNetwork(network, names, other)
        if _runs(as_asked, described):
            return tuple(described), as_asked
    wrong = next(s for s in floats if s.datatype != own)
    if given:
        raise InputSpecError(
            f"input '{wrong.name}' is given as {wrong.datatype.name}, but the network computes in {own.name} and does "
            f"not run with it: write --input '{replace(wrong, datatype=own)}'"
            + (", and --dtype fp16 for the arithmetic inside" if wrong.datatype.name == "FP16" else "")
        )
    return tuple(replace(s, datatype=own) if s in floats else s for s in described), named


def _runs(network: NamedNetwork, described: Sequence[InputSpec]) -> bool:
    """Whether the network runs with the inputs as they are described, at one of the usual sizes."""
    for sizes in usual_sizes(described):
        try:
            network.run(random_inputs(described, sizes, np.random.default_rng(0)))
        except StateError:
            return True  # it ran: the search of sizes gives the reason
        except Exception:  # another size may do
            continue
        return True
    return False
