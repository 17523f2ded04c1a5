"""A PyTorch module as an origin: its weights are loaded, float64 gives its exact answer, ``torch.export`` its graph."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from normfold.export.capture.capture import capture
from normfold.export.capture.capture_errors import refuse_quantized, refuse_training_modules
from normfold.export.capture.named_network import NamedNetwork
from normfold.export.capture.own_numbers import own_numbers
from normfold.export.errors import CheckpointError
from normfold.export.inputs.sizes import usual_sizes
from normfold.export.inputs.specs import InputSpec
from normfold.export.inputs.values import LARGEST, find_values
from normfold.export.plain_module import all_in_float64, duplicate, with_plain_weights
from normfold.export.sources.checkpoint_keys import some
from normfold.export.sources.module_datatypes import in_datatypes, refuse_weights
from normfold.export.sources.origin import Arrays, Origin, Request, Run
from normfold.export.sources.rounding import Rounding
from normfold.export.sources.source import Source, load_source
from normfold.export.sources.weights import Checkpoint, load_into, read_checkpoint, takes
from normfold.export.user_code import first_line

__all__ = ["exact", "open_module"]


def open_module(request: Request, described: Sequence[InputSpec]) -> Origin:
    """Load the module and its weights and return it as an origin with the inputs ``described``."""
    torch.manual_seed(0)  # so that a factory without --weights makes the same network each time
    source = load_source(request.source, request.arguments)
    checkpoint: Checkpoint | None = None
    if request.weights is not None:
        checkpoint = read_checkpoint(
            request.weights,
            source.network.state_dict(),
            request.weights_key,
            request.weights_sha256,
            partial(takes, source.network),
        )
        load_into(source.network, checkpoint, request.weights)
    refuse_training_modules(source.network)
    refuse_quantized(source.network)
    with_plain_weights(source.network)
    described = _named(described, source.network)
    refuse_weights(source.network, source.name)
    described, network = in_datatypes(described, source.network, bool(request.inputs))
    notes = _in_order(network)
    notes += checkpoint.notes if checkpoint else _without_weights(source, request.untrained)
    specs, tried = find_values(described, network.run, usual_sizes(described), _largest_index(source.network))
    return Origin(
        name=source.name,
        sha256=source.sha256,
        weights=request.weights.name if request.weights else "",
        weights_sha256=checkpoint.sha256 if checkpoint else "",
        specs=specs,
        run=network.run,
        reference=lambda inputs: exact(network, inputs),
        graph=lambda specs, sizes, opset: capture(network, specs, sizes, opset),
        notes=(*source.notes, *notes, *tried),
    )


def _without_weights(source: Source, untrained: bool) -> tuple[str, ...]:
    """Return a note on which weights are used; none for a network in memory, which has them.

    Raises CheckpointError for a class, whose weights are random numbers, and for lazy layers that have none yet.
    """
    state = source.network.state_dict()
    if source.kind != "class" and not untrained and (lazy := [name for name, t in state.items() if is_lazy(t)]):
        raise CheckpointError(
            f"'{source.name}' was never run, so its lazy layers have no weights yet ({some(lazy)}): run the network "
            "once and train it before it is exported, or give a file of its weights"
        )
    if not state or source.kind == "network":
        return ()
    if untrained:
        return ("--untrained: the network was exported with the weights that it begins with, as it was asked for",)
    if source.kind == "class":
        raise CheckpointError(
            f"'{source.name}' is a class, so its weights are random numbers until a file of weights is loaded: give it "
            "with --weights FILE, name a function that returns the trained network, or say --untrained if this is meant"
        )
    made = "returned" if source.kind == "function" else "has"
    return (f"no --weights: the network was exported with the weights that '{source.name}' {made}",)


def exact(network: NamedNetwork, inputs: Arrays, graph: bool = False) -> tuple[Run, str, tuple[str, ...]]:
    """Return the network in float64; where its code works in float32 only, the network as it is and a note.

    ``graph``: it is a captured program, without code of its own.
    """
    double, failed, rounding = None, "", Rounding()
    for change, watching in ((nn.Module.double, nullcontext()), (all_in_float64, rounding)):
        try:
            tried = NamedNetwork(change(duplicate(network.network)), network.names)
            with own_numbers(network.dtype, graph), watching:
                tried.run(inputs)
        except Exception as error:
            failed = failed or first_line(error)
        else:
            # Attributes in float32 are a sign of code for float32. Where it rounds what it computes, too, its answer is
            # no better than the network's own.
            double = None if rounding.seen else tried
            break
    if double is None:
        note = f"the network does not run in float64 ({failed}); the reference is PyTorch in float32"
        return network.run, "PyTorch, float32", (note,)

    def run(inputs: Arrays) -> Arrays:
        with own_numbers(network.dtype, graph):
            return double.run(inputs)

    return run, "PyTorch, float64", ()


def _named(described: Sequence[InputSpec], network: nn.Module) -> tuple[InputSpec, ...]:
    """Return the inputs with the name of forward()'s argument for the one whose sample has none."""
    names = [p.name for p in inspect.signature(network.forward).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return tuple(replace(s, name=(names[0] if names else "x")) if not s.name else s for s in described)


def _in_order(network: NamedNetwork) -> tuple[str, ...]:
    """Return a note where the user's forward() calls its inputs otherwise than --input does."""
    forward = network.network.forward
    names = [p.name for p in inspect.signature(forward).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if network.by_keyword or not names or forward.__module__.startswith("torch."):
        return ()
    other = ", ".join(f"'{name}'" for name in network.names if name not in names)
    return (f"forward({', '.join(names)}) has no argument {other}, so the inputs are passed to it in order",)


def _largest_index(network: nn.Module) -> int:
    """Return how far the values of an integer input are searched: beyond the rows of the largest embedding."""
    rows = [m.num_embeddings for m in network.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return max([LARGEST, *rows])
