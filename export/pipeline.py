"""From a network to a version in a model repository: load, capture, fold, prove, time, publish, in that order.

Nothing is written before the proof holds, and then all at once.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from normfold.export.capture.capture import DEFAULT_OPSET, OPSETS
from normfold.export.capture.tidy import strip
from normfold.export.errors import ExportError
from normfold.export.fold import FoldReport, counts, fold
from normfold.export.forms.measure import Timing, shapes_of
from normfold.export.forms.precision import check_precision, reduce_precision
from normfold.export.forms.variants import AUTO, check_form, choose, rewritten_forms
from normfold.export.graphs.exact import Graph, in_float64
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.samples import fit, read_sample
from normfold.export.inputs.sizes import Sizes, batch_dimension
from normfold.export.inputs.specs import InputSpec, dimensions, random_inputs
from normfold.export.proof.accepted_sizes import sizes_of, sizes_of_both
from normfold.export.proof.proof import Proof
from normfold.export.proof.verify import Case
from normfold.export.publishing import publish as publishing
from normfold.export.publishing.config import OutputSpec, render_config
from normfold.export.publishing.golden import golden, golden_case
from normfold.export.publishing.html_report import as_html
from normfold.export.publishing.labels import labelled_output, read_labels
from normfold.export.publishing.report import ExportReport, Published, as_json
from normfold.export.sources.origin import Origin, Request, open_origin
from normfold.protos.datatypes import by_dtype

__all__ = ["ExportRequest", "Folded", "Progress", "export_model", "fold_and_prove"]

Progress = Callable[[str], None]

#: ONNX IR version written for each opset: the one of the ONNX release that brought the opset, so that every runtime
#: that knows the opset reads the file.
IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


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
    #: "fp16", "bf16" or "int8"; None: float32.
    precision: str | None = None
    #: Publish a reduced precision also where it is slower than float32 on this machine.
    even_if_slower: bool = False
    #: The form to publish, one of :data:`normfold.export.forms.variants.FORMS`; "auto": the fastest on this machine.
    form: str = AUTO
    #: Time the forms also where an earlier export has.
    remeasure: bool = False


@dataclass(frozen=True)
class Folded:
    """A network as a folded graph that was proved to be the same."""

    #: What ``model.onnx`` will hold.
    content: bytes
    #: The same network before the fold.
    unfolded: bytes
    outputs: tuple[OutputSpec, ...]
    proof: Proof
    #: What was done and found; the model's name, version and path are not filled in yet.
    report: ExportReport


def export_model(request: ExportRequest, progress: Progress = lambda step: None) -> ExportReport:
    """Export as ``request`` says and return the report; ``progress`` is told each step's name as it begins.

    Raises ExportError (see :mod:`normfold.export.errors`); then nothing was published.
    """
    publishing.check_name(request.name)
    if request.opset not in OPSETS:
        raise ExportError(f"opset {request.opset} cannot be written; expected {OPSETS.start} to {OPSETS.stop - 1}")
    check_form(request.form)
    labels = read_labels(request.labels) if request.labels else None
    if request.precision is not None:
        check_precision(request.precision, bool(request.samples))
    progress("load the network")
    files = [read_sample(path) for path in request.samples]
    origin = open_origin(Request(request.source, request.weights, request.inputs, request.arguments), files)
    samples = [Case("sample", f.name, fit(f, origin.specs)) for f in files]
    folded = fold_and_prove(
        origin,
        samples,
        request.name,
        request.opset,
        progress,
        form=request.form,
        remeasure=request.remeasure,
        labels=labels or (),
    )
    sizes = folded.proof.sizes
    labelled = labelled_output(labels, folded.outputs) if labels else None
    content, report = folded.content, replace(folded.report, model=request.name)
    if request.precision is not None:
        progress(f"reduce it to {request.precision}")
        proof = folded.proof
        content, reduced = reduce_precision(
            content,
            request.precision,
            proof.reference,
            proof.cases,
            _timed_inputs(sizes),
            even_if_slower=request.even_if_slower,
            remeasure=request.remeasure,
        )
        report = replace(report, precision=reduced, sha256=hashlib.sha256(content).hexdigest())
    progress("publish")
    case = golden_case(folded.proof.cases)
    version_files = {
        "model.onnx": content,
        "golden.json": golden(case.inputs, Runtime(content, optimised=True).run(case.inputs)),
        "export.json": (json.dumps(as_json(report), indent=2) + "\n").encode(),
        "report.html": as_html(report).encode(),
    }
    config = render_config(request.name, sizes.specs, folded.outputs, labelled, sizes.trace)
    model_files = {"config.pbtxt": config.encode()}
    if labels:
        model_files["labels.txt"] = ("\n".join(labels) + "\n").encode()
    publication = publishing.Publication(request.name, model_files, version_files)
    path = publishing.publish(request.repository, publication, request.version, request.overwrite)
    return replace(report, version=int(path.name), path=str(path))


def fold_and_prove(
    origin: Origin,
    samples: Sequence[Case],
    name: str,
    opset: int,
    progress: Progress = lambda step: None,
    *,
    form: str = AUTO,
    remeasure: bool = False,
    labels: Sequence[str] = (),
) -> Folded:
    """Write ``origin`` as a graph, fold it, prove it and time it; ``form`` as in ExportRequest.

    Raises ExportError where it cannot be proved, or has no such form; at once where no output has one entry a label.
    """
    progress("find the sizes it takes")
    sizes = sizes_of(origin, samples)
    if labels:
        answer = origin.run(random_inputs(sizes.specs, sizes.trace, np.random.default_rng(0)))
        labelled_output(labels, [OutputSpec(n, by_dtype(a.dtype), a.shape) for n, a in answer.items()])
    progress("capture the graph")
    captured = origin.graph(sizes.specs, sizes.trace, opset)
    captured.ir_version = IR_VERSIONS.get(captured.opset_imports.get("", 0), captured.ir_version)
    exact = in_float64(captured)
    model = captured if exact is None else exact
    unfolded = Graph.of(model, exact is not None)
    sizes = sizes_of_both(origin, samples, sizes, Runtime(unfolded.content, optimised=False).run)
    progress("compute the network in float64")
    proof = Proof(origin, sizes, samples, unfolded)
    progress("fold the BatchNorms")
    folding = fold(model)
    strip(model)
    model.producer_name, model.producer_version = "normfold", metadata.version("normfold")
    model.graph.name = name
    _write_provenance(model, origin, sizes.specs, folding)
    folded = Graph.of(model, exact is not None)
    progress("prove that it is the same network")
    forms, left_out = _proved_forms(proof, {"folded": folded, **rewritten_forms(unfolded, folded, form)}, form)
    progress("time it")
    inputs = _timed_inputs(sizes)
    choice = choose({name: graph.content for name, graph in forms.items()}, inputs, form, remeasure)
    outputs = _outputs(model, Runtime(folded.content, optimised=True), sizes)
    chosen_by = "measurement" if form == AUTO else "request"
    chosen = forms[choice.form].model()
    published = Published(choice.form, *counts(chosen), chosen_by)
    final = folded if choice.form == "folded" else _stamped(chosen, model, published, exact is not None)
    content, proved = final.content, proof.of(final)
    proof.require_same(proved, final, choice.form)
    times = {v.name: v.median_ms for v in choice.variants}
    timing = Timing(times["unfolded"], times[choice.form], choice.rounds, shapes_of(inputs), choice.remembered)
    report = ExportReport(
        model="",
        version=0,
        path="",
        source=origin.name,
        source_sha256=origin.sha256,
        weights=origin.weights,
        weights_sha256=origin.weights_sha256,
        inputs=tuple(str(s) for s in sizes.specs),
        outputs=tuple(f"{o.name}={o.datatype.name}[{','.join(str(d) or '?' for d in o.dims)}]" for o in outputs),
        opset=model.opset_imports.get("", opset),
        folding=folding,
        published=published,
        bytes_before=len(unfolded.content),
        bytes_after=len(content),
        algebra=proved.algebra,
        verification=proved.rounding,
        timing=timing,
        machine=choice.machine,
        sha256=hashlib.sha256(content).hexdigest(),
        versions=_versions(),
        variants=choice.variants,
        notes=(*origin.notes, *sizes.notes, *proof.notes, *left_out),
    )
    return Folded(content, unfolded.content, outputs, proof, report)


def _proved_forms(proof: Proof, made: Mapping[str, Graph], asked: str) -> tuple[dict[str, Graph], tuple[str, ...]]:
    """Return the forms that may be published, the unfolded one among them, and a note on each that may not.

    A form that rounds worse than the network does is left out, unless it was asked for: it is the same function.
    Raises VerificationError where a form is not the same function.
    """
    forms, notes = {"unfolded": proof.unfolded}, []
    for name, graph in made.items():
        proved = proof.of(graph)
        proof.require_same(proved, graph, name)
        if proved.rounding.passed or name == asked:
            forms[name] = graph
        if not proved.rounding.passed:
            worst = proved.rounding.worst
            what = worst.trouble or (
                f"output '{worst.output}' is off by {worst.relative:.1e} of its scale on {worst.kind} inputs, where "
                f"{worst.bound:.1e} is allowed"
            )
            outcome = "is published, as it was asked for" if name == asked else "was left out"
            notes.append(f"the {name} form rounds worse in float32 than the network itself and {outcome}: {what}")
    return forms, tuple(notes)


def _stamped(model: ir.Model, like: ir.Model, form: Published, exact: bool) -> Graph:
    """``model`` with no trace of its making and the provenance of ``like``, told of which form it is."""
    strip(model)
    model.producer_name, model.producer_version, model.graph.name = (
        like.producer_name,
        like.producer_version,
        like.graph.name,
    )
    model.metadata_props.update(like.metadata_props)
    if form.form in ("unfolded", "blocked"):
        model.metadata_props["normfold.batchnorms"] = f"{form.batchnorms}, {form.form}"
    model.metadata_props["normfold.form"] = form.form
    return Graph.of(model, exact)


def _timed_inputs(sizes: Sizes) -> dict[str, NDArray[Any]]:
    """The inputs to time with: a batch of one at the traced sizes."""
    batch = batch_dimension(sizes.specs)
    single = {**sizes.trace, **({batch.name: batch.low or 1} if batch else {})}
    return random_inputs(sizes.specs, single, np.random.default_rng(1))


def _outputs(model: ir.Model, served: Runtime, sizes: Sizes) -> tuple[OutputSpec, ...]:
    """The outputs with their dimensions; what the graph does not say is read off an answer at the traced sizes."""
    got: dict[str, NDArray[Any]] = {}
    outputs = []
    for value in model.graph.outputs:
        name = value.name or ""
        got = got or served.run(random_inputs(sizes.specs, sizes.trace, np.random.default_rng(0)))
        shape = tuple(value.shape) if value.shape is not None else (None,) * got[name].ndim
        datatype = by_dtype(got[name].dtype)
        dims = tuple(d if isinstance(d, int) else (d.value if isinstance(d, ir.SymbolicDim) else None) for d in shape)
        outputs.append(OutputSpec(name, datatype, _with_batch(dims, got[name].shape, sizes)))
    return tuple(outputs)


def _with_batch(dims: tuple[int | str | None, ...], shape: tuple[int, ...], sizes: Sizes) -> tuple[int | str, ...]:
    """Give an unnamed first dimension the batch's name where it has the batch's size."""
    batch = batch_dimension(sizes.specs)
    known = {d.name for d in dimensions(sizes.specs)}
    first = dims[0] if dims else None
    if batch and dims and not isinstance(first, int) and first not in known and shape[0] == sizes.trace[batch.name]:
        dims = (batch.name, *dims[1:])
    return tuple("" if d is None else d for d in dims)


def _write_provenance(model: ir.Model, origin: Origin, specs: Sequence[InputSpec], folding: FoldReport) -> None:
    """Say in the file itself what it was made of. No time, no path: the same inputs give the same bytes."""
    facts = {
        "source": origin.name,
        "source_sha256": origin.sha256,
        "weights_sha256": origin.weights_sha256,
        "inputs": "; ".join(str(s) for s in specs),
        "form": "folded",
        "batchnorms": f"{folding.batchnorms_before} before, {folding.batchnorms_after} after folding",
        "versions": ", ".join(f"{k} {v}" for k, v in _versions().items()),
    }
    model.metadata_props.update({f"normfold.{k}": v for k, v in sorted(facts.items()) if v})


def _versions() -> dict[str, str]:
    names = ("normfold", "torch", "onnx", "onnx-ir", "onnxscript")
    return {**{n: metadata.version(n) for n in names}, "python": platform.python_version()}
