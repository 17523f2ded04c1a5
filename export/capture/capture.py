"""Capture a PyTorch network as an ONNX graph with every BatchNorm still in it, and every named dimension still dynamic.

``torch.export`` makes the program, ``torch.onnx.export(dynamo=True, optimize=False)`` the graph: with
``optimize=True`` it would fold Conv → BatchNorm itself, and the graph that the folded one is compared with would be
lost.

The default is opset 18: torch's translations are written in it (a higher opset goes through a version converter), and
onnxruntime reads it since 1.14, so that today's releases and older ones in inference servers load the same file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from torch.export import Dim, ExportedProgram

from normfold.counting import counted
from normfold.export import choices
from normfold.export.capture import capture_errors
from normfold.export.capture.blocks import BLOCKS, BlockSplits, TooFewBlocks
from normfold.export.capture.guards import guards_of
from normfold.export.capture.inner_ones import without_inner_ones
from normfold.export.capture.lacking import LACKING
from normfold.export.capture.linked_sizes import refuse_linked
from normfold.export.capture.max_pool import DynamicMaxPool, restore_max_pool
from normfold.export.capture.mutation import refuse_written_buffers
from normfold.export.capture.named_network import NamedNetwork, named_outputs
from normfold.export.capture.number_types import as_floats_where_mixed
from normfold.export.capture.pieces import DynamicPieces
from normfold.export.capture.recurrent import TRANSLATIONS, WholeRecurrence
from normfold.export.capture.resizing import RESIZING, as_exact_resizes
from normfold.export.capture.running_statistics import as_batch_norms
from normfold.export.capture.settled import WritesLeftOut, moves_on, own_copies
from normfold.export.capture.tidy import name_dimensions, tidy
from normfold.export.capture.window_pool import WINDOW_POOL
from normfold.export.errors import CaptureError
from normfold.export.graphs.onnx_file import NEWEST_OPSET
from normfold.export.inputs.blocks import sizes_with_blocks
from normfold.export.inputs.specs import Dimension, InputSpec, random_inputs

__all__ = ["DEFAULT_OPSET", "GUARDS", "OPSETS", "SPLITS", "capture", "program_to_graph"]

DEFAULT_OPSET = 18
OPSETS = range(choices.OPSETS.start, NEWEST_OPSET + 1)
#: Where a captured graph keeps the :class:`~normfold.export.inputs.blocks.Blocks` that it cuts dynamic sizes into.
SPLITS = "normfold.splits"
#: Where it keeps the :class:`~normfold.export.inputs.guards.Guard` objects under which it is the network.
GUARDS = "normfold.guards"
#: A network that splits what it split before is traced again at larger sizes, up to this number of times.
MOST_TRACES = 4


@dataclass(frozen=True)
class _Example:
    """One set of inputs to trace with."""

    sizes: Mapping[str, int]
    tensors: tuple[torch.Tensor, ...]


def capture(
    network: NamedNetwork, specs: Sequence[InputSpec], sizes: Mapping[str, int], opset: int = DEFAULT_OPSET
) -> ir.Model:
    """Return ``network`` as an ONNX graph, traced with the named dimensions at ``sizes`` and dynamic in all of them.

    Raises CaptureError with a message of :mod:`normfold.export.capture.capture_errors`, which names the user's line.
    """
    with torch.no_grad(), _quiet(), network.held.kept():
        sizes = without_inner_ones(network, lambda s: _example(network, specs, s).tensors, specs, sizes)
        example = _example(network, specs, sizes)
        names = [name for name, _ in named_outputs(network.call(example.tensors))]
        splits, program = _traced(network, specs, example)
    capture_errors.refuse_training(program)
    refuse_written_buffers(program)
    _check_dimensions(program, specs)
    refuse_linked(program, specs)
    model = program_to_graph(program, specs, names, opset)
    model.meta[SPLITS] = tuple(splits.found)
    return model


def _traced(
    network: NamedNetwork, specs: Sequence[InputSpec], example: _Example
) -> tuple[BlockSplits, ExportedProgram]:
    """Return the program; where the network works in blocks, it is traced at sizes with several.

    Where it writes its own weights, it has run before, and the program has the weights that it wrote.
    """
    left_out: WritesLeftOut | None = None
    for _ in range(MOST_TRACES):
        splits = BlockSplits(specs)
        try:
            with left_out or contextlib.nullcontext():
                program = _export(network, specs, example, True, splits)
            if left_out:
                own_copies(program)
            return splits, program
        except Exception as error:
            writes = left_out is None and capture_errors.writes_while_it_runs(error)
            if writes and not moves_on(network, partial(network.call, example.tensors)):
                left_out = WritesLeftOut(network)
                continue
            few = next((e for e in _causes(error) if isinstance(e, TooFewBlocks)), None)
            sizes = None if few is None else sizes_with_blocks(few.blocks, specs, example.sizes)
            if sizes is None:
                with WritesLeftOut(network):  # perhaps it writes, and failed before
                    raise _explain(error, network, specs, example, splits) from error
            example = _example(network, specs, sizes)
    raise CaptureError(str(splits.found[-1]))


def program_to_graph(
    program: ExportedProgram, specs: Sequence[InputSpec], outputs: Sequence[str], opset: int
) -> ir.Model:
    """Return an exported program as an ONNX graph whose inputs, outputs and dimensions have the given names."""
    as_floats_where_mixed(program)
    as_batch_norms(program)
    as_exact_resizes(program)
    with torch.no_grad(), _quiet():
        try:
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                opset_version=opset,
                input_names=[s.name for s in specs],
                verbose=False,
                external_data=False,
                custom_translation_table={**TRANSLATIONS, **WINDOW_POOL, **BLOCKS, **LACKING, **RESIZING},
            )
        except Exception as error:
            raise CaptureError(capture_errors.translate(error, program)) from error
    assert onnx_program is not None
    model = onnx_program.model
    if len(outputs) != len(model.graph.outputs):
        raise CaptureError(
            f"the network returns {counted(len(outputs), 'tensor')}, but the graph has {len(model.graph.outputs)}: "
            "does what it returns depend on its input?"
        )
    name_dimensions(model, specs)
    tidy(model, outputs)
    restore_max_pool(model)
    model.meta[GUARDS] = guards_of(program, specs)
    return model


def _example(network: NamedNetwork, specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> _Example:
    drawn = random_inputs(specs, sizes, np.random.default_rng(0))
    tensors = (torch.from_numpy(drawn[s.name]) for s in specs)
    dtype = network.dtype
    return _Example(sizes, tuple(t.to(dtype) if t.is_floating_point() else t for t in tensors))


def _export(
    network: NamedNetwork,
    specs: Sequence[InputSpec],
    example: _Example,
    dynamic: bool | str,
    splits: BlockSplits | None = None,
) -> ExportedProgram:
    """Run torch.export; dynamic is True (every named dimension), False (none) or the name of one dimension."""

    def is_dynamic(d: int | Dimension) -> bool:
        return isinstance(d, Dimension) and (dynamic is True or dynamic == d.name)

    shapes = tuple({axis: Dim.DYNAMIC for axis, d in enumerate(s.dims) if is_dynamic(d)} for s in specs)
    splits = BlockSplits(specs) if splits is None else splits
    seen = network.register_forward_pre_hook(lambda _, inputs: splits.see(inputs))
    try:
        with DynamicMaxPool(), WholeRecurrence(), DynamicPieces(splits):
            return torch.export.export(network, example.tensors, dynamic_shapes=(shapes,), strict=False)
    finally:
        seen.remove()


def _explain(
    error: Exception, network: NamedNetwork, specs: Sequence[InputSpec], example: _Example, splits: BlockSplits
) -> CaptureError:
    """Find out whether one dynamic dimension made the capture fail, and which line gives it a fixed size."""
    for cause in _causes(error):
        if isinstance(cause, CaptureError):
            return cause
        if isinstance(cause, TooFewBlocks):
            return CaptureError(str(cause))
    names = list(dict.fromkeys(d.name for s in specs for d in s.dims if isinstance(d, Dimension)))
    if not names:
        return CaptureError(capture_errors.translate(error))
    try:
        _export(network, specs, example, dynamic=False)
    except Exception as static_error:
        return CaptureError(capture_errors.translate(static_error))
    if splits.found:
        return CaptureError(str(splits.found[0]))
    for name in names:
        watch = _Watch()
        with watch:
            try:
                _export(network, specs, example, dynamic=name)
            except Exception as single:
                return CaptureError(
                    capture_errors.fixed_dimension(name, specs, example.sizes[name], watch.line, single)
                )
    return CaptureError(capture_errors.translate(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _check_dimensions(program: ExportedProgram, specs: Sequence[InputSpec]) -> None:
    """Raise CaptureError where torch gave a named dimension a fixed size, or found two of them to be equal."""
    user_inputs = [
        n for n in program.graph.nodes if n.op == "placeholder" and n.name in program.graph_signature.user_inputs
    ]
    owner: dict[str, str] = {}
    for spec, node in zip(specs, user_inputs, strict=True):
        for axis, (d, size) in enumerate(zip(spec.dims, node.meta["val"].shape, strict=True)):
            if not isinstance(d, Dimension):
                continue
            if isinstance(size, int):
                raise CaptureError(
                    f"dimension '{d.name}' (axis {axis} of '{spec.name}') is fixed to {size} by the network"
                )
            other = owner.setdefault(str(size), d.name)
            if other != d.name:
                raise CaptureError(
                    f"the network needs '{other}' and '{d.name}' to be equal: give both the same name in --input"
                )


class _Watch(logging.Handler):
    """Reads torch's log of symbolic shapes and keeps the line of user code at which a size became a number."""

    def __init__(self) -> None:
        super().__init__()
        self.line = ""
        self._log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
        self._saved: tuple[int, list[logging.Handler], bool] = (0, [], True)

    def emit(self, record: logging.LogRecord) -> None:
        """Note the line that runs when a symbol is replaced by a constant."""
        text = record.getMessage()
        if "set_replacement" in text and text.partition(" = ")[2].split(" ")[0].isdigit() and not self.line:
            from normfold.export.user_code import current_line

            self.line = current_line()

    def __enter__(self) -> _Watch:
        self._saved = (self._log.level, list(self._log.handlers), self._log.propagate)
        self._log.handlers = [self]
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        return self

    def __exit__(self, *exc: object) -> None:
        level, self._log.handlers, self._log.propagate = self._saved
        self._log.setLevel(level)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's warnings and log lines from the terminal; an error reports what matters in them."""
    loggers = [
        logging.getLogger(n)
        for n in ("torch.onnx", "torch.export", "torch.fx", "torch._export", "onnxscript", "onnx_ir")
    ]
    levels = [log.level for log in loggers]
    children = [
        v
        for k, v in logging.root.manager.loggerDict.items()
        if k.startswith(("torch.", "onnx")) and isinstance(v, logging.Logger)
    ]
    disabled = [c.disabled for c in children]
    for log in loggers:
        log.setLevel(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),  # torch prints whole programs where it fails
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
            for child, was in zip(children, disabled, strict=True):
                child.disabled = was
