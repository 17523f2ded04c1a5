"""A ``torch.export`` program (``.pt2``) as an origin."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_unflatten

from normfold.counting import counted
from normfold.export.capture.capture import program_to_graph
from normfold.export.capture.capture_errors import refuse_training
from normfold.export.capture.linked_sizes import refuse_linked
from normfold.export.capture.mutation import refuse_written_buffers
from normfold.export.capture.named_network import NamedNetwork, named_outputs
from normfold.export.errors import InputSpecError, SourceError
from normfold.export.inputs.sizes import usual_sizes
from normfold.export.inputs.specs import Dimension, InputSpec
from normfold.export.inputs.values import find_values
from normfold.export.sources.module_datatypes import DATATYPES
from normfold.export.sources.module_origin import exact
from normfold.export.sources.origin import Origin
from normfold.export.sources.program_inspection import inspect_program
from normfold.export.sources.program_sizes import (
    captured_sizes,
    noted_guards,
    refusing_others,
    with_noted_guards,
    within_guards,
)
from normfold.export.user_code import first_line
from normfold.protos.datatypes import by_name

__all__ = ["open_program"]


def open_program(path: Path, given: Sequence[InputSpec]) -> Origin:
    """Load the program at ``path``; ``given`` gives its inputs and dimensions other names.

    Raises SourceError for a file that is damaged, holds code or was made by another torch, and InputSpecError where
    ``given`` does not fit it.
    """
    content = path.read_bytes()
    inspect_program(content, path)
    try:
        program = torch.export.load(io.BytesIO(content))
    except Exception as error:
        raise SourceError(
            f"'{path}' cannot be read as a torch.export program by torch {torch.__version__}: {first_line(error)}"
        ) from error
    _forget_derived_ranges(program)
    refuse_training(program)
    refuse_written_buffers(program)
    specs = _specs(program, given, path)
    network = NamedNetwork(_Program(program), [s.name for s in specs])
    guards, captured = noted_guards(program, specs), captured_sizes(program, specs)
    specs = within_guards(specs, given, guards, captured)
    run = refusing_others(specs, guards, network.run)
    specs, tried = find_values(specs, run, usual_sizes(specs, [captured] if captured else []))
    return Origin(
        name=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        weights="",
        weights_sha256="",
        specs=specs,
        run=run,
        reference=lambda inputs: exact(network, inputs, graph=True),
        graph=lambda specs, sizes, opset: with_noted_guards(
            program_to_graph(program, specs, _outputs(network, specs, sizes), opset), program, specs
        ),
        notes=tried,
        captured=captured,
    )


def _forget_derived_ranges(program: ExportedProgram) -> None:
    """Leave ranges of symbols alone where torch reads its programs.

    It also keeps the range of a size such as ``2*H`` among those of the symbols, and then cannot decompose the program.
    """
    values = [n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"]
    for size in itertools.chain.from_iterable(v.shape for v in values if isinstance(v, torch.Tensor)):
        if isinstance(size, torch.SymInt):
            ranges = size.node.shape_env.var_to_range
            for expression in [e for e in ranges if not e.is_symbol]:
                del ranges[expression]


class _Program(nn.Module):
    """An exported program as a module whose ``forward`` takes the inputs by position; their names do not matter."""

    def __init__(self, program: ExportedProgram):
        super().__init__()
        self.inner = program.module(check_guards=False)
        self.structure = program.call_spec.in_spec

    def train(self, mode: bool = True) -> _Program:
        """Do nothing: a captured program has only one mode."""
        return self

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Run the program; its own positions, keywords, dicts and tuples are filled with the tensors in their order."""
        if self.structure is None:
            return self.inner(*tensors)
        arguments, keywords = tree_unflatten(list(tensors), self.structure)
        return self.inner(*arguments, **keywords)


def _specs(program: ExportedProgram, given: Sequence[InputSpec], path: Path) -> tuple[InputSpec, ...]:
    names = list(program.graph_signature.user_inputs)
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    if given and len(given) != len(names):
        raise InputSpecError(
            f"'{path}' takes {counted(len(names), 'input')} ({', '.join(map(str, names))}), "
            f"but the description has {len(given)}"
        )
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    symbols: dict[str, Dimension] = {}
    asked = {d.name for s in given for d in s.dims if isinstance(d, Dimension)}
    found = []
    for index, name in enumerate(names):
        value = values.get(name)
        if not isinstance(value, torch.Tensor) or value.dtype not in DATATYPES:
            raise SourceError(
                f"'{path}': its input '{name}' is {getattr(value, 'dtype', type(value).__name__)}, which no client "
                "can send"
            )
        dims: list[int | Dimension] = []
        for axis, size in enumerate(value.shape):
            if isinstance(size, int):
                dims.append(size)
                continue
            wanted = given[index].dims[axis] if given and axis < len(given[index].dims) else None
            if str(size) not in symbols:
                taken = asked | {d.name for d in symbols.values()}
                symbols[str(size)] = _dimension(ranges.get(str(size)), axis, taken, wanted)
            dims.append(symbols[str(size)])
        spec = InputSpec(str(name), by_name(DATATYPES[value.dtype]), tuple(dims))
        found.append(_renamed(spec, given[index], path) if given else spec)
    refuse_linked(program, found)
    return tuple(found)


def _dimension(bounds: Any, axis: int, taken: Collection[str], wanted: int | Dimension | None) -> Dimension:
    """Name a symbol as the user did, else N, N2, … for a first axis and L, L2, … for others; keep its range."""
    # torch writes the lower bound 2 for any dynamic size
    low = int(bounds.lower) if bounds is not None and int(bounds.lower) > 2 else None
    high = (
        int(bounds.upper)
        if bounds is not None and str(bounds.upper).isdigit() and int(bounds.upper) < 1 << 31
        else None
    )
    if isinstance(wanted, Dimension):
        return Dimension(wanted.name, wanted.low or low, wanted.high or high, wanted.step)
    letter = "L" if axis else "N"
    names = (f"{letter}{number}" if number > 1 else letter for number in itertools.count(1))
    return Dimension(next(name for name in names if name not in taken), low, high)


def _renamed(spec: InputSpec, given: InputSpec, path: Path) -> InputSpec:
    same_rank = len(spec.dims) == len(given.dims)
    fixed = [(a, b) for a, b in zip(spec.dims, given.dims, strict=False) if isinstance(a, int) and a != b]
    if spec.datatype != given.datatype or not same_rank or fixed:
        raise InputSpecError(
            f"'{path}' was captured with {spec}, which {given} does not fit; capture it again to change it"
        )
    return replace(spec, name=given.name, values=given.values, limit=given.limit, below=given.below)


def _outputs(network: NamedNetwork, specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> list[str]:
    import numpy as np

    from normfold.export.inputs.specs import random_inputs

    drawn = random_inputs(specs, sizes, np.random.default_rng(0))
    with torch.no_grad():
        returned = network.call([torch.from_numpy(drawn[s.name]) for s in specs])
    return [name for name, _ in named_outputs(returned)]
