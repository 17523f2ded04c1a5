"""From a network to a version in a model repository: load, capture, fold, prove, time, publish, in that order.

Nothing is written before the proof holds, and then all at once.
"""

from __future__ import annotations

import copy
import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from normfold.export import publish as publishing
from normfold.export.capture import DEFAULT_OPSET, OPSETS, capture
from normfold.export.config import OutputSpec, render_config
from normfold.export.errors import CaptureError, ExportError, InputSpecError
from normfold.export.fold import FoldReport, fold
from normfold.export.inputs import InputSpec, parse_inputs, random_inputs, specs_of_samples
from normfold.export.labels import labelled_output, read_labels
from normfold.export.measure import measure
from normfold.export.named import NamedNetwork
from normfold.export.report import ExportReport
from normfold.export.runtime import Runtime
from normfold.export.samples import Sample, fit, read_sample, sample_sizes
from normfold.export.serialize import to_bytes
from normfold.export.sizes import Sizes, batch_dimension, find_sizes
from normfold.export.source import Source, load_source
from normfold.export.tidy import strip
from normfold.export.troubles import refuse_training_modules
from normfold.export.verify import Case, Verification, require, verify
from normfold.export.weights import Checkpoint, load_into, read_checkpoint
from normfold.protos.datatypes import by_onnx

__all__ = ["ExportRequest", "export_model"]

#: ONNX IR version written for each opset: the one of the ONNX release that brought the opset, so that every runtime
#: that knows the opset reads the file.
IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
#: Random cases drawn at the traced sizes; one at every other set of sizes.
RANDOM_CASES = 4
#: Scales of the inputs beside N(0, 1): far below and above what a normalised signal has.
SCALES = (1e-4, 1e-2, 1e2, 1e4)


@dataclass(frozen=True)
class ExportRequest:
    """What a person asks for; the fields are the options of ``normfold export``."""

    source: str
    repository: Path
    name: str
    #: "x=FP32[N,77,L]"; may be left out where a sample shows the shapes.
    inputs: Sequence[str] = ()
    weights: Path | None = None
    labels: Path | None = None
    samples: Sequence[Path] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    #: None: the next free one.
    version: int | None = None
    overwrite: bool = False
    opset: int = DEFAULT_OPSET


@dataclass(frozen=True)
class _Loaded:
    """The network with everything that is known of its inputs."""

    network: NamedNetwork
    specs: tuple[InputSpec, ...]
    sizes: Sizes
    samples: tuple[Case, ...]
    notes: tuple[str, ...]


def export_model(request: ExportRequest, progress: Callable[[str], None] = lambda step: None) -> ExportReport:
    """Export as ``request`` says and return the report; ``progress`` is told each step's name as it begins.

    Raises ExportError (see :mod:`normfold.export.errors`); then nothing was published.
    """
    publishing.check_name(request.name)
    if request.opset not in OPSETS:
        raise ExportError(f"opset {request.opset} cannot be written; expected {OPSETS.start} to {OPSETS.stop - 1}")
    progress("load the network")
    torch.manual_seed(0)  # a factory without weights gives the same network twice
    source = load_source(request.source, request.arguments)
    checkpoint, notes = _load_weights(source, request)
    progress("find the sizes it takes")
    loaded = _inputs(source, request)
    progress("capture the graph")
    model = capture(loaded.network, loaded.specs, loaded.sizes.trace, request.opset)
    model.ir_version = IR_VERSIONS[request.opset]
    unfolded = to_bytes(model)
    progress("fold the BatchNorms")
    folding = fold(model)
    strip(model)
    model.producer_name, model.producer_version = "normfold", metadata.version("normfold")
    model.graph.name = request.name
    _write_provenance(model, source, checkpoint, loaded.specs, folding)
    folded = to_bytes(model)
    progress("prove it against PyTorch in float64")
    verification, reference_notes = _prove(loaded, unfolded, folded)
    require(verification)
    progress("time it")
    pair = (Runtime(unfolded, optimised=True), Runtime(folded, optimised=True))
    batch = batch_dimension(loaded.specs)
    sizes = {**loaded.sizes.trace, **({batch.name: batch.low or 1} if batch else {})}
    timing = measure(*pair, random_inputs(loaded.specs, sizes, np.random.default_rng(1)))
    outputs = _outputs(model)
    labels = read_labels(request.labels) if request.labels else None
    labelled = labelled_output(labels, outputs) if labels else None
    progress("publish")
    config = render_config(request.name, loaded.specs, outputs, labelled, loaded.sizes.trace)
    report = ExportReport(
        model=request.name,
        version=0,
        path="",
        source=source.name,
        source_sha256=source.sha256,
        weights=request.weights.name if request.weights else "",
        weights_sha256=checkpoint.sha256 if checkpoint else "",
        inputs=tuple(str(s) for s in loaded.specs),
        outputs=tuple(f"{o.name}={o.datatype.name}[{','.join(str(d) or '?' for d in o.dims)}]" for o in outputs),
        opset=request.opset,
        folding=folding,
        bytes_before=len(unfolded),
        bytes_after=len(folded),
        verification=verification,
        timing=timing,
        sha256=hashlib.sha256(folded).hexdigest(),
        versions=_versions(),
        notes=(*source.notes, *notes, *loaded.notes, *loaded.sizes.notes, *reference_notes),
    )
    model_files = {"config.pbtxt": config.encode()}
    if labels:
        model_files["labels.txt"] = ("\n".join(labels) + "\n").encode()
    path = publishing.publish(
        request.repository,
        publishing.Publication(request.name, model_files, {"model.onnx": folded}),
        request.version,
        request.overwrite,
    )
    return replace(report, version=int(path.name), path=str(path))


def _load_weights(source: Source, request: ExportRequest) -> tuple[Checkpoint | None, tuple[str, ...]]:
    if request.weights is None:
        return None, ("no --weights: the network was exported with the weights it was made with",)
    checkpoint = read_checkpoint(request.weights, source.network.state_dict())
    return checkpoint, (*checkpoint.notes, *load_into(source.network, checkpoint, request.weights))


def _inputs(source: Source, request: ExportRequest) -> _Loaded:
    """Work out the inputs: names, shapes, ranges, the values of indices, and the user's samples as cases."""
    refuse_training_modules(source.network)
    samples = [read_sample(path) for path in request.samples]
    specs = _described(parse_inputs(request.inputs), samples)
    specs = tuple(_with_values(s, source.network) for s in specs)
    network = NamedNetwork(source.network, [s.name for s in specs])
    fitted = [(s.name, fit(s, specs)) for s in samples]
    of_samples = [sample_sizes(arrays, specs, name) for name, arrays in fitted]

    def attempt(sizes: Mapping[str, int]) -> None:
        network.run(random_inputs(specs, sizes, np.random.default_rng(0)))

    sizes = find_sizes(specs, attempt, of_samples)
    cases = tuple(Case("sample", name, arrays) for name, arrays in fitted)
    return _Loaded(network, sizes.specs, sizes, cases, ())


def _described(given: tuple[InputSpec, ...], samples: Sequence[Sample]) -> tuple[InputSpec, ...]:
    if given:
        return given
    if not samples:
        raise InputSpecError("say what goes into the network: --input x=FP32[N,77,L], or --sample with an example")
    arrays = {name or "x": array for name, array in samples[0].arrays.items()}
    return specs_of_samples(arrays)


def _with_values(spec: InputSpec, network: nn.Module) -> InputSpec:
    """Give integer inputs the range of indices that every embedding of the network takes."""
    if spec.values is not None or spec.datatype.dtype.kind not in "iu":
        return spec
    rows = [m.num_embeddings for m in network.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return replace(spec, values=(0, min(rows) - 1)) if rows else spec


def _prove(loaded: _Loaded, unfolded: bytes, folded: bytes) -> tuple[Verification, tuple[str, ...]]:
    reference, name, notes = _reference(loaded)
    plain, served = Runtime(unfolded, optimised=False), Runtime(folded, optimised=True)
    return verify(reference.run, plain.run, served.run, _cases(loaded), name), notes


def _reference(loaded: _Loaded) -> tuple[NamedNetwork, str, tuple[str, ...]]:
    """The network in float64; as it is where its code insists on float32 somewhere."""
    double = NamedNetwork(copy.deepcopy(loaded.network.network).double(), loaded.network.names)
    try:
        double.run(random_inputs(loaded.specs, loaded.sizes.trace, np.random.default_rng(0)))
    except Exception as error:
        note = (
            f"the network does not run in float64 ({str(error).splitlines()[0]}); the reference is PyTorch in float32"
        )
        return loaded.network, "PyTorch, float32", (note,)
    return double, "PyTorch, float64", ()


def _cases(loaded: _Loaded) -> list[Case]:
    rng = np.random.default_rng(2015)
    cases = []
    for index, sizes in enumerate(loaded.sizes.proof):
        label = " ".join(f"{k}={v}" for k, v in sizes.items()) or "as declared"
        draws = RANDOM_CASES if index == 0 else 1
        cases += [Case("random", label, random_inputs(loaded.specs, sizes, rng)) for _ in range(draws)]
    if any(s.datatype.dtype.kind == "f" for s in loaded.specs):
        for scale in SCALES:
            inputs = random_inputs(loaded.specs, loaded.sizes.trace, rng, scale)
            cases.append(Case("scaled", f"inputs times {scale:g}", inputs))
    return [*cases, *loaded.samples]


def _outputs(model: ir.Model) -> tuple[OutputSpec, ...]:
    outputs = []
    for value in model.graph.outputs:
        if value.dtype is None or value.shape is None:
            raise CaptureError(f"the shape of output '{value.name}' is not known after capture")
        dims = tuple(d if isinstance(d, int) else (d.value or "") for d in value.shape)
        try:
            datatype = by_onnx(value.dtype.value)
        except KeyError:
            raise CaptureError(f"output '{value.name}' is {value.dtype.name}, which no client can receive") from None
        outputs.append(OutputSpec(value.name or "", datatype, dims))
    return tuple(outputs)


def _write_provenance(
    model: ir.Model, source: Source, checkpoint: Checkpoint | None, specs: Sequence[InputSpec], folding: FoldReport
) -> None:
    """Say in the file itself what it was made of. No time, no path: the same inputs give the same bytes."""
    facts = {
        "source": source.name,
        "source_sha256": source.sha256,
        "weights_sha256": checkpoint.sha256 if checkpoint else "",
        "inputs": "; ".join(str(s) for s in specs),
        "batchnorms": f"{folding.batchnorms_before} before, {folding.batchnorms_after} after folding",
        "versions": ", ".join(f"{k} {v}" for k, v in _versions().items()),
    }
    model.metadata_props.update({f"normfold.{k}": v for k, v in sorted(facts.items()) if v})


def _versions() -> dict[str, str]:
    names = ("normfold", "torch", "onnx", "onnx-ir", "onnxscript")
    return {**{n: metadata.version(n) for n in names}, "python": platform.python_version()}
