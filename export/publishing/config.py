"""``config.pbtxt``: the description of a model for an inference server (Triton's ``ModelConfig`` as text)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from google.protobuf import text_format

from normfold.export.inputs.sizes import batch_dimension
from normfold.export.inputs.specs import Dimension, InputSpec, dimensions
from normfold.export.proof.rows_alone import UNSEEN
from normfold.protos import model_config
from normfold.protos.datatypes import Datatype

__all__ = ["DEFAULT_MAX_BATCH", "OutputSpec", "alone_note", "limits", "max_batch_size", "render_config"]

#: Largest batch that a server may form where the input's range gives no limit.
DEFAULT_MAX_BATCH = 64


@dataclass(frozen=True)
class OutputSpec:
    """One output of the exported graph; a dimension is a size, a name, or "" where it depends on other dimensions."""

    name: str
    datatype: Datatype
    dims: tuple[int | str, ...]


def max_batch_size(inputs: Sequence[InputSpec], outputs: Sequence[OutputSpec]) -> int:
    """Return the largest batch if all tensors have the same named first dimension; else 0, which means no batching."""
    first = {i.dims[0] if i.dims else None for i in inputs}
    batch = first.pop() if len(first) == 1 else None
    if not isinstance(batch, Dimension) or any(not o.dims or o.dims[0] != batch.name for o in outputs):
        return 0
    return batch.high or DEFAULT_MAX_BATCH


def limits(inputs: Sequence[InputSpec], max_batch: int) -> tuple[str, ...]:
    """Return in words the sizes that a request may have, for each named dimension; ``max_batch`` is that in force."""
    batch = batch_dimension(inputs) if max_batch else None
    said = [f"{batch.name} from {batch.low or 1} to {max_batch} (max_batch_size in config.pbtxt)"] if batch else []
    for d in dimensions(inputs):
        if batch is None or d.name != batch.name:
            step = "" if d.step in (None, 1) else f" in steps of {d.step}"
            said.append(f"{d.name} from {d.low or 1} {f'to {d.high}' if d.high else 'up'}{step}")
    return tuple(said)


def render_config(
    name: str,
    inputs: Sequence[InputSpec],
    outputs: Sequence[OutputSpec],
    labelled: str | None,
    warm_up: Mapping[str, int],
    *,
    alone: bool = False,
) -> str:
    """Return the text of ``config.pbtxt``. labelled is the output whose classes ``labels.txt`` names, if any.

    warm_up holds a size for every named dimension; a server runs these sizes before it reports that it is ready.
    alone: the answer to a row depends on the other rows of a run. So a server must run each request by itself, and must
    not run the rows of a large one in parts: then there is no batch dimension for it.
    """
    batch = 0 if alone else max_batch_size(inputs, outputs)
    config = model_config.ModelConfig(name=name, backend="onnxruntime", max_batch_size=batch)
    skip = 1 if batch else 0
    for spec in inputs:
        dims = [d if isinstance(d, int) else -1 for d in spec.dims[skip:]]
        config.input.add(name=spec.name, data_type=_type(spec.datatype), dims=dims)
    for output in outputs:
        dims = [d if isinstance(d, int) else -1 for d in output.dims[skip:]]
        file = "labels.txt" if output.name == labelled else ""
        config.output.add(name=output.name, data_type=_type(output.datatype), dims=dims, label_filename=file)
    if batch > 1:
        config.dynamic_batching.SetInParent()
    for size in sorted({1, min(batch, 8)}) if batch else (0,):
        warmup = config.model_warmup.add(name=f"batch of {size}" if size else "one request", batch_size=size or 1)
        for spec in inputs:
            entry = warmup.inputs[spec.name]
            entry.data_type = _type(spec.datatype)
            entry.dims.extend(spec.shape(warm_up)[skip:])
            if spec.datatype.dtype.kind == "f":
                entry.random_data = True
            else:
                entry.zero_data = True  # random indices could fall outside an embedding
    return text_format.MessageToString(config)


def alone_note(mixed: str) -> tuple[str, ...]:
    """Return the note on a network that mixes the rows of a batch, as ``mixed`` says; none where that is ""."""
    if not mixed:
        return ()
    so = "So config.pbtxt has max_batch_size 0 and no dynamic_batching, and a server runs each request alone."
    others = "the answer to a row depends on the other rows of its batch"
    if mixed == UNSEEN:
        return (f"requests are not batched, because it could not be seen whether {others}: {mixed}. {so}",)
    return (
        f"requests are not batched, because {others}: {mixed}. {so} If the network is not meant to do this, compute "
        "over each row alone: for x of [N,C,L], x.mean((1, 2), keepdim=True) in place of x.mean()",
    )


def _type(datatype: Datatype) -> model_config.DataType:
    return cast(model_config.DataType, datatype.config)
