"""The inputs and outputs of a model as clients see them, in which config.pbtxt and the model file agree."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from normfold.protos import model_config as mc
from normfold.protos.datatypes import Datatype, by_config
from normfold.serving.errors import ConfigError, InvalidRequest
from normfold.serving.runtime.settings import ModelTensor
from normfold.serving.wire.proved_sizes import ProvedSizes
from normfold.serving.wording import dims, printable, quoted

Shape = tuple[int, ...]


#: The largest number of dimensions of an array in NumPy; the batch may need one.
MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class TensorSpec:
    """One input or output as clients see it."""

    name: str
    datatype: Datatype
    #: The shape, with the batch dimension first where the model batches; -1 is any size.
    shape: Shape
    #: Where config.pbtxt reshapes: the shape in the file, with sizes of -1 in the same order as in ``shape``.
    reshape: Shape | None = None
    #: An input that may be left out.
    optional: bool = False
    #: The file declares no rank, so any shape fits.
    any_rank: bool = False
    #: A label for each class, for the classification extension.
    labels: tuple[str, ...] = ()

    def fits(self, shape: Shape) -> bool:
        """Whether a tensor of ``shape`` may be this input or output."""
        return self.any_rank or (
            len(shape) == len(self.shape) and all(d in (-1, s) for s, d in zip(shape, self.shape, strict=True))
        )

    def seen(self, shape: Shape) -> Shape:
        """The shape in which clients see an output of ``shape``. Raises InvalidRequest where it cannot be reshaped.

        onnxruntime does not hold a model to the shapes that its file declares.
        """
        if self.reshape is None:
            return shape
        if len(shape) != len(self.reshape) or any(d not in (-1, s) for s, d in zip(shape, self.reshape, strict=True)):
            raise InvalidRequest(
                f"output {quoted(self.name)} has the shape {dims(shape)} for this input, and config.pbtxt reshapes "
                f"{dims(self.reshape)} to {dims(self.shape)}"
            )
        return reshaped(shape, self.reshape, self.shape)

    def __str__(self) -> str:
        return f"{printable(self.name)} {self.datatype.name}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Contract:
    """The inputs and outputs of a model by name, in the model's order."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    #: The largest number of rows in a request; 0: the model has no batch dimension.
    max_batch_size: int
    #: The sizes to which requests are held; None: to those that ``inputs`` allow.
    proved: ProvedSizes | None = None
    #: The inputs that a request must have.
    required: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "required", frozenset(s.name for s in self.inputs.values() if not s.optional))


def agree(
    config: mc.ModelConfig,
    inputs: Sequence[ModelTensor],
    outputs: Sequence[ModelTensor],
    labels: Mapping[str, tuple[str, ...]],
    proved: ProvedSizes | None = None,
) -> Contract:
    """The contract between a complete configuration and a model file. Raises ConfigError where they disagree."""
    ranks = [(tensor.name, len(tensor.shape or ())) for tensor in (*inputs, *outputs)]
    ranks += [(entry.name, len(entry.dims)) for entry in config.input]
    ranks += [(entry.name, len(entry.dims)) for entry in config.output]
    for name, rank in ranks:
        if rank >= MOST_DIMENSIONS:
            raise ConfigError(f"{name!r} has {rank} dimensions; fewer than {MOST_DIMENSIONS} can be served")
    specs_in = {i.name: _spec(i, inputs, config.max_batch_size, "input", i.optional) for i in config.input}
    specs_out = {o.name: _spec(o, outputs, config.max_batch_size, "output") for o in config.output}
    for tensor in inputs:
        if not tensor.optional and (tensor.name not in specs_in or specs_in[tensor.name].optional):
            raise ConfigError(f"the file needs input {tensor.name!r}; config.pbtxt leaves it out or calls it optional")
    named = {n: TensorSpec(**{**s.__dict__, "labels": labels.get(n, ())}) for n, s in specs_out.items()}
    return Contract(specs_in, named, config.max_batch_size, proved)


def _spec(
    entry: mc.ModelInput | mc.ModelOutput,
    declared: Sequence[ModelTensor],
    max_batch_size: int,
    kind: str,
    optional: bool = False,
) -> TensorSpec:
    tensor = next((t for t in declared if t.name == entry.name), None)
    if tensor is None:
        names = [t.name for t in declared]
        near = difflib.get_close_matches(entry.name, names, n=1) or names
        raise ConfigError(f"config.pbtxt has {kind} {entry.name!r}, the file has no such {kind}; it has {near[0]!r}")
    if by_config(entry.data_type) is not tensor.datatype:
        raise ConfigError(
            f"{kind} {entry.name!r}: config.pbtxt says {by_config(entry.data_type).config_name}, "
            f"the file has {tensor.datatype.config_name}"
        )
    batch = (-1,) if max_batch_size else ()
    dims, reshape = tuple(entry.dims), None
    if entry.HasField("reshape"):
        reshape = (*batch, *entry.reshape.shape)
        _check_reshape(entry.name, dims, tuple(entry.reshape.shape))
    _check_shape(tensor, (*batch, *dims) if reshape is None else reshape, max_batch_size, kind)
    return TensorSpec(entry.name, tensor.datatype, (*batch, *dims), reshape, optional, _any_rank(tensor, entry))


def _any_rank(tensor: ModelTensor, entry: mc.ModelInput | mc.ModelOutput) -> bool:
    return tensor.shape is None and not entry.dims


def _check_reshape(name: str, dims: Shape, reshape: Shape) -> None:
    """Raise unless each stretch between sizes of -1 has the same number of elements before and after."""
    if [math.prod(p) for p in _stretches(dims)] != [math.prod(p) for p in _stretches(reshape)]:
        raise ConfigError(f"{name!r}: dims {list(dims)} cannot be reshaped to {list(reshape)}")


def _stretches(shape: Shape) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for size in shape:
        if size == -1:
            parts.append([])
        else:
            parts[-1].append(size)
    return parts


def _check_shape(tensor: ModelTensor, shape: Shape, max_batch_size: int, kind: str) -> None:
    """Raise unless the file can take, or give, every ``shape`` that config.pbtxt promises."""
    if tensor.shape is None:
        return
    written, has = list(shape), list(tensor.shape)
    if max_batch_size and tensor.shape[:1] != (-1,):
        raise ConfigError(
            f"{kind} {tensor.name!r}: max_batch_size is {max_batch_size}, but the file's shape {has} does not start "
            "with a dynamic dimension; set max_batch_size to 0 or export with a dynamic batch dimension"
        )
    if len(written) != len(has) or any(h not in (-1, s) for s, h in zip(written, has, strict=True)):
        raise ConfigError(
            f"{kind} {tensor.name!r}: config.pbtxt says {written}{' (batch first)' if max_batch_size else ''}, "
            f"the file has {has}"
        )


def reshaped(shape: Shape, seen: Shape, target: Shape) -> Shape:
    """``target`` with its sizes of -1 replaced, in order, by the sizes of ``shape`` at the places of -1 in ``seen``."""
    sizes = iter([size for size, declared in zip(shape, seen, strict=True) if declared == -1])
    return tuple(next(sizes) if size == -1 else size for size in target)
