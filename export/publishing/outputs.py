"""The outputs of an exported graph: name, datatype and dimensions, as the model repository describes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.sizes import Sizes, batch_dimension
from normfold.export.inputs.specs import dimensions, random_inputs
from normfold.export.publishing.config import OutputSpec
from normfold.protos.datatypes import by_dtype

__all__ = ["output_specs"]


def output_specs(model: ir.Model, served: Runtime, sizes: Sizes) -> tuple[OutputSpec, ...]:
    """Return the outputs of ``model``; what the graph does not say is read off an answer at the traced sizes."""
    answer: dict[str, NDArray[Any]] = {}
    outputs = []
    for value in model.graph.outputs:
        name = value.name or ""
        answer = answer or served.run(random_inputs(sizes.specs, sizes.trace, np.random.default_rng(0)))
        shape = tuple(value.shape) if value.shape is not None else (None,) * answer[name].ndim
        dims = tuple(d if isinstance(d, int) else (d.value if isinstance(d, ir.SymbolicDim) else None) for d in shape)
        outputs.append(OutputSpec(name, by_dtype(answer[name].dtype), _with_batch(dims, answer[name].shape, sizes)))
    return tuple(outputs)


def _with_batch(dims: tuple[int | str | None, ...], shape: tuple[int, ...], sizes: Sizes) -> tuple[int | str, ...]:
    """Give an unnamed first dimension the name of the batch dimension where it has the size of the batch."""
    batch = batch_dimension(sizes.specs)
    known = {d.name for d in dimensions(sizes.specs)}
    first = dims[0] if dims else None
    if batch and dims and not isinstance(first, int) and first not in known and shape[0] == sizes.trace[batch.name]:
        dims = (batch.name, *dims[1:])
    return tuple("" if d is None else d for d in dims)
