"""Arithmetic in front of a network and behind it: inputs are standardised, outputs become probabilities.

``(x - mean) / std`` is written as a BatchNormalization with gamma 1 and beta 0, so the fold treats it like any other:
the scale goes into the weights of the first layers, the shift into their biases, through zero padding by a carrier
channel. Its statistics are those of the data. A mean that is many times larger than the deviation would cost the last
digits of the sums; then the fold leaves the shift in the graph.

The reference of the proof computes the same in float64, with the constants that the graph holds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.errors import InputSpecError
from normfold.export.graphs.writing import Writing
from normfold.export.inputs.specs import InputSpec
from normfold.export.sources.origin import Arrays, Origin

__all__ = ["Ends", "tells_of_ends", "with_ends"]

Array = NDArray[Any]
_WORDS = ("gamma", "beta", "mean", "variance")
#: How the notes of a report say what is computed before and behind the network.
_BEFORE, _BEHIND = "is standardised before the network", "of what the network returns"


@dataclass(frozen=True)
class Ends:
    """The arithmetic before and after the network; none by default."""

    #: Input -> mean and standard deviation, each one number or one for each channel.
    standardize: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)
    #: Output -> the axis of its classes; None: the last of two axes.
    softmax: Mapping[str, int | None] = field(default_factory=dict)
    #: Outputs of which each number becomes a probability of its own.
    sigmoid: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InputSpecError where an output is given to both, or twice: the answer would be neither's."""
        if both := next((name for name in self.sigmoid if name in self.softmax), ""):
            raise InputSpecError(
                f"output '{both}' is given to both softmax and sigmoid; expected one of them: softmax where one class "
                "is right, sigmoid where each may be"
            )
        if twice := next((name for name in self.sigmoid if self.sigmoid.count(name) > 1), ""):
            raise InputSpecError(f"output '{twice}' is given to sigmoid more than once")

    @property
    def anything(self) -> bool:
        """Whether something is computed at all."""
        return bool(self.standardize or self.softmax or self.sigmoid)


def tells_of_ends(note: str) -> bool:
    """Whether a note of a report is one of those that :func:`with_ends` adds."""
    return _BEFORE in note or note.endswith(_BEHIND)


@dataclass(frozen=True)
class _Standard:
    """The standardisation of one input: constants in the type of the input, of the shape (C,) or ()."""

    mean: Array
    variance: Array

    def of(self, x: Array) -> Array:
        """``x`` standardised, in its own precision."""
        shape = self.mean.shape + (1,) * (x.ndim - 2) if self.mean.ndim else ()
        mean, variance = (v.astype(x.dtype).reshape(shape) for v in (self.mean, self.variance))
        standardised: Array = (x - mean) / np.sqrt(variance)
        return standardised

    def raw(self, x: Array) -> Array:
        """The array of which ``x`` is the standardised one."""
        shape = self.mean.shape + (1,) * (x.ndim - 2) if self.mean.ndim else ()
        mean, variance = (v.astype(np.float64).reshape(shape) for v in (self.mean, self.variance))
        given: Array = (x * np.sqrt(variance) + mean).astype(x.dtype)
        return given


def with_ends(origin: Origin, ends: Ends) -> Origin:
    """Return ``origin`` with ``ends`` around it: as a function, as the exact reference, and as a graph.

    Raises InputSpecError where an input is not there, is no float, or has another number of channels; where an output
    is not there or has no axis of classes, the first run raises it.
    """
    if not ends.anything:
        return origin
    standards = {name: _standard(name, *given, origin.specs) for name, given in ends.standardize.items()}

    def before(inputs: Arrays, double: bool = False) -> Arrays:
        wide = {k: inputs[k].astype(np.float64) if double else inputs[k] for k in standards}
        return {**inputs, **{name: standard.of(wide[name]) for name, standard in standards.items()}}

    def reference(inputs: Arrays) -> Any:
        run, name, notes = origin.reference(before(inputs))
        double = name.endswith("float64")
        return lambda given: _after(run(before(given, double)), ends), name, notes

    notes = [f"'{name}' {_BEFORE}: (x - mean) / std" for name in standards]
    notes += [f"output '{name}' is the softmax {_BEHIND}" for name in ends.softmax]
    notes += [f"output '{name}' is the sigmoid {_BEHIND}" for name in ends.sigmoid]
    return replace(
        origin,
        run=lambda inputs: _after(origin.run(before(inputs)), ends),
        reference=reference,
        graph=lambda specs, sizes, opset: _written(origin.graph(specs, sizes, opset), standards, ends),
        notes=(*origin.notes, *notes),
        raw=(lambda inputs: {**inputs, **{k: v.raw(inputs[k]) for k, v in standards.items()}}) if standards else None,
    )


def _standard(name: str, mean: Any, std: Any, specs: tuple[InputSpec, ...]) -> _Standard:
    spec = next((s for s in specs if s.name == name), None)
    if spec is None:
        there = [s.name for s in specs]
        raise InputSpecError(f"--standardize {name}: there is no input '{name}'; {_there_are(name, there)}")
    if spec.datatype.dtype.kind != "f":
        raise InputSpecError(f"--standardize {name}: it is {spec.datatype.name}; only floats can be standardised")
    channels = spec.dims[1] if len(spec.dims) > 1 else None
    arrays = []
    for array, what in ((np.asarray(mean, np.float64), "mean"), (np.asarray(std, np.float64), "std")):
        flat = array.reshape(-1)
        if not np.isfinite(flat).all() or (what == "std" and not (flat > 0).all()):
            wanted = "finite and above 0" if what == "std" else "finite"
            raise InputSpecError(f"--standardize {name}: the {what} of '{name}' holds a number that is not {wanted}")
        if flat.size != 1 and flat.size != channels:
            raise InputSpecError(
                f"--standardize {name}: the {what} of '{name}' has {flat.size} numbers; {spec} needs one"
                + (f", or {channels}, one for each channel" if isinstance(channels, int) else "")
            )
        arrays.append(np.broadcast_to(flat, (channels,)) if isinstance(channels, int) else flat.reshape(()))
    dtype = spec.datatype.dtype
    with np.errstate(over="ignore"):
        standard = _Standard(arrays[0].astype(dtype), (arrays[1] ** 2).astype(dtype))
    if not (np.isfinite(standard.mean) & np.isfinite(standard.variance) & (standard.variance > 0)).all():
        raise InputSpecError(
            f"--standardize {name}: the mean or the squared std of '{name}' is beyond {spec.datatype.name}; "
            "give the network an input of FP32"
        )
    return standard


def _after(outputs: Arrays, ends: Ends) -> Arrays:
    found = dict(outputs)
    for option, names in (("--softmax", ends.softmax), ("--sigmoid", ends.sigmoid)):
        for name in names:
            if name not in found:
                raise InputSpecError(f"{option} {name}: there is no output '{name}'; {_there_are(name, found)}")
    for name, axis in ends.softmax.items():
        y = found[name]
        exponentials = np.exp(y - y.max(axis=_axis(name, axis, y.ndim), keepdims=True))
        found[name] = exponentials / exponentials.sum(axis=_axis(name, axis, y.ndim), keepdims=True)
    for name in ends.sigmoid:
        with np.errstate(over="ignore"):
            found[name] = 1 / (1 + np.exp(-found[name]))
    return found


def _there_are(name: str, known: Iterable[str]) -> str:
    """The names there are, and the one that was probably meant."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1) if len(names) > 1 else []
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"there {'are' if len(names) > 1 else 'is'} {', '.join(map(repr, names))}{hint}"


def _axis(name: str, axis: int | None, rank: int) -> int:
    if axis is None and rank == 2:
        return 1
    if axis is None or not -rank <= axis < rank:
        raise InputSpecError(
            f"--softmax {name}: output '{name}' has {rank} axes; say which is that of the classes: --softmax {name}:1"
            if axis is None
            else f"--softmax {name}:{axis}: output '{name}' has {rank} axes, 0 to {rank - 1}, so {axis} is none of them"
        )
    return axis % rank


def _written(model: ir.Model, standards: Mapping[str, _Standard], ends: Ends) -> ir.Model:
    """Return ``model`` with the ends written into its graph; inputs and outputs keep their names."""
    graph = model.graph
    writing = Writing(graph, model.opset_imports.get("", 18))
    for name, standard in standards.items():
        value = next(v for v in graph.inputs if v.name == name)
        _standardise(writing, value, standard)
    for name, axis in ends.softmax.items():
        index = next(i for i, v in enumerate(graph.outputs) if v.name == name)
        shape = graph.outputs[index].shape
        _append(writing, index, "Softmax", axis=_axis(name, axis, 2 if shape is None else len(shape)))
    for name in ends.sigmoid:
        _append(writing, next(i for i, v in enumerate(graph.outputs) if v.name == name), "Sigmoid")
    return model


def _standardise(writing: Writing, value: ir.Value, standard: _Standard) -> None:
    readers, first, like = list(value.uses()), writing.graph[0], f"{value.name}_standardized"
    mean, variance = standard.mean, standard.variance
    if mean.ndim:
        parts = (np.ones_like(mean), np.zeros_like(mean), mean, variance)
        constants = [writing.constant(part, f"{value.name}_{word}") for part, word in zip(parts, _WORDS, strict=True)]
        result = writing.insert("BatchNormalization", [value, *constants], first, like, epsilon=0.0)
    else:
        centred = writing.insert("Sub", [value, writing.constant(mean, f"{value.name}_mean")], first, like)
        deviation = writing.constant(np.sqrt(variance), f"{value.name}_std")
        result = writing.insert("Div", [centred, deviation], first, like)
    node = result.producer()
    assert node is not None
    node.metadata_props.clear()  # they are those of the node behind it
    result.shape, result.type = value.shape, value.type
    for reader, index in readers:
        reader.replace_input_with(index, result)


def _append(writing: Writing, index: int, operator: str, **attributes: Any) -> None:
    old = writing.graph.outputs[index]
    name = old.name or "output"
    new = writing.insert(operator, [old], None, name, **attributes)
    old.name, new.name = writing.fresh(f"{name}_before_{operator.lower()}"), name
    new.shape, new.type = old.shape, old.type
    writing.graph.outputs[index] = new
