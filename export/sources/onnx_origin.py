"""An ONNX file of any exporter as an origin: ONNX's reference evaluator gives its exact answer in float64."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.capture.capture import DEFAULT_OPSET
from normfold.export.errors import ExportError, InputSpecError, SourceError
from normfold.export.graphs.float64 import Float64Graph
from normfold.export.graphs.onnx_file import read_onnx
from normfold.export.graphs.onnx_sizes import GraphSizes
from normfold.export.graphs.runtime import Runtime
from normfold.export.graphs.serialize import to_bytes
from normfold.export.graphs.usable import require_usable
from normfold.export.inputs.specs import Dimension, InputSpec, dimensions, random_inputs, with_ranges
from normfold.export.sources.origin import Arrays, Origin, Run
from normfold.export.sources.proved import as_proved
from normfold.export.user_code import first_line
from normfold.protos.datatypes import by_onnx

__all__ = ["graph_inputs", "open_onnx"]


def open_onnx(path: Path, given: Sequence[InputSpec] = (), opset: int | None = DEFAULT_OPSET) -> Origin:
    """Read the file and return it as an origin; ``given`` names dimensions and ranges that the file leaves open.

    Raises SourceError where the file fails a check, CheckpointError where its weights are NaN, InputSpecError where
    ``given`` does not fit its inputs.
    """
    shapes = {s.name: [d if isinstance(d, int) else d.name for d in s.dims] for s in given}
    file = read_onnx(path, opset, shapes)
    require_usable(file.model)  # before it is run, because its answers would be NaN at every size of the inputs
    specs = _merged(as_proved(graph_inputs(file.model, path), file.model.metadata_props), given, path)
    modern = to_bytes(file.model if opset == DEFAULT_OPSET else read_onnx(path, DEFAULT_OPSET, shapes).model)
    bounds, runtime, double = GraphSizes(file.content), Runtime(file.content, optimised=False), _double(modern)

    def run(inputs: Arrays) -> Arrays:
        bounds.check(inputs)
        return _run(runtime, double, inputs)

    def graph(specs: Sequence[InputSpec], sizes: Mapping[str, int], wanted: int) -> ir.Model:
        model = read_onnx(path, wanted if opset is not None else None, shapes).model
        _forget_traced_sizes(model, runtime, specs, sizes)
        return model

    return Origin(
        name=path.name,
        sha256=file.sha256,
        weights="",
        weights_sha256="",
        specs=specs,
        run=run,
        reference=lambda inputs: _exact((file.content, modern), runtime, inputs),
        graph=graph,
        notes=file.notes,
        content=file.content,
    )


def _forget_traced_sizes(
    model: ir.Model, runtime: Runtime, specs: Sequence[InputSpec], sizes: Mapping[str, int]
) -> None:
    """Drop from the declared shapes of the outputs every size that changes with a dimension of the inputs, in place.

    The TorchScript exporter writes the sizes that it traced with, such as a batch of 2, where it cannot infer a shape.
    """
    known = dimensions(specs)
    tried = [dict(sizes)]
    for d in known:
        others = (sizes[d.name] + (d.step or 1), sizes[d.name] - (d.step or 1))
        tried += [{**sizes, d.name: other} for other in others if other > 0 and d.holds(other)][:1]
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for one in tried if known else []:
        with suppress(ExportError):  # a size that the network does not take says nothing
            for name, y in runtime.run(random_inputs(specs, one, np.random.default_rng(0))).items():
                shapes.setdefault(name, []).append(y.shape)
    for value in model.graph.outputs:
        seen = shapes.get(value.name or "", [])
        if value.shape is None or any(len(shape) != len(value.shape) for shape in seen):
            continue
        dims = [
            None if isinstance(d, int) and any(shape[axis] != d for shape in seen) else d
            for axis, d in enumerate(value.shape)
        ]
        value.shape = ir.Shape(dims)


def graph_inputs(model: ir.Model, path: Path) -> tuple[InputSpec, ...]:
    """Return the inputs without initializers; dimensions without a name get one (N for the first axis)."""
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.dtype is None or value.shape is None:
            raise SourceError(f"'{path}': its input '{value.name}' has no datatype or shape")
        try:
            datatype = by_onnx(value.dtype.value)
        except KeyError:
            raise SourceError(
                f"'{path}': its input '{value.name}' is {value.dtype.name}, which no client can send"
            ) from None
        dims = tuple(_dimension(d, axis, value.name or "") for axis, d in enumerate(value.shape))
        specs.append(InputSpec(value.name or "", datatype, dims))
    return tuple(specs)


def _dimension(dim: int | ir.SymbolicDim, axis: int, name: str) -> int | Dimension:
    if isinstance(dim, int):
        return dim if dim > 0 else Dimension("N" if axis == 0 else f"{_identifier(name)}_{axis}")
    if dim.value is None:
        return Dimension("N" if axis == 0 else f"{_identifier(name)}_{axis}")
    return Dimension(_identifier(dim.value))


def _identifier(text: str) -> str:
    name = re.sub(r"\W", "_", text)
    return name if name[:1].isalpha() or name[:1] == "_" else f"d_{name}"


def _merged(found: Sequence[InputSpec], given: Sequence[InputSpec], path: Path) -> tuple[InputSpec, ...]:
    by_name = {s.name: s for s in given}
    for spec in given:
        if spec.name not in {s.name for s in found}:
            raise InputSpecError(
                f"'{path}' has no input '{spec.name}'; it has {', '.join(repr(s.name) for s in found)}"
            )
    merged = []
    for spec in found:
        wish = by_name.get(spec.name)
        if wish is None:
            merged.append(spec)
            continue
        fixed = [(a, b) for a, b in zip(spec.dims, wish.dims, strict=False) if isinstance(a, int) and a != b]
        if len(wish.dims) != len(spec.dims) or wish.datatype != spec.datatype or fixed:
            raise InputSpecError(f"'{path}' takes {spec}, which {wish} does not fit")
        merged.append(wish)
    ranges: dict[str, Dimension] = {}
    for spec in (*given, *merged):  # a range that is given once is that of every dimension of its name
        for d in spec.dims:
            if isinstance(d, Dimension) and d.ranged:
                ranges.setdefault(d.name, d)
    return with_ranges(merged, ranges)


def _run(runtime: Runtime, double: Float64Graph | None, inputs: Arrays) -> Arrays:
    """Run the graph. Raises ExportError where a length is too short: onnxruntime gives an empty output then."""
    outputs = runtime.run(inputs)
    shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in inputs.items())
    for name, y in outputs.items():
        if y.size == 0:
            raise ExportError(f"output '{name}' is empty on {shapes}")
    try:
        if double is not None:
            double.run(inputs)
    except RuntimeError as error:  # raised by torch for a convolution or pool whose input is too short
        if "output size" in str(error) or "Kernel size" in str(error):
            raise ExportError(f"the input of a layer is too short with {shapes}: {error}") from error
    except Exception:  # an operator that the evaluator does not know: the reference reports it
        return outputs
    return outputs


def _double(content: bytes) -> Float64Graph | None:
    try:
        return Float64Graph(content)
    except Exception:
        return None


def _exact(contents: Sequence[bytes], runtime: Runtime, inputs: Arrays) -> tuple[Run, str, tuple[str, ...]]:
    """Return the graph in float64, checked once against the file as it was read; else that file in float32 and a note.

    ONNX's evaluator computes old versions of some operators wrongly: then the converted graph is tried.
    """
    plain, reason = runtime.run(inputs), ""
    for content in contents:
        try:
            double = Float64Graph(content)
            exact = double.run(inputs)
        except Exception as error:
            reason = first_line(error)
            continue
        wrong = next((n for n, y in plain.items() if not _close(exact[n], y)), None)
        if wrong is None:
            return double.run, "ONNX reference, float64", ()
        reason = f"its output '{wrong}' differs there"
    note = f"the graph does not run in float64 ({reason}); the reference is onnxruntime in float32, as it was read"
    return runtime.run, "onnxruntime, float32", (note,)


def _close(exact: NDArray[Any], plain: NDArray[Any]) -> bool:
    """Whether two answers are equal up to the largest rounding error that a float32 network can have."""
    if exact.shape != plain.shape:
        return False
    if plain.dtype.kind != "f":
        return True
    scale = float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        return bool(np.allclose(exact, plain, rtol=0, atol=1e-2 * scale + 1e-30, equal_nan=True))
