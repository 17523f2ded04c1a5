"""From a network to a version in a model repository: load, capture, fold, prove, time, publish, in that order.

Nothing is written before the proof holds; then all files are written at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from normfold.export.calibration.scale import unlike_training
from normfold.export.capture.capture import GUARDS, OPSETS, SPLITS
from normfold.export.choices import AUTO, check_opset, check_threads, check_variant
from normfold.export.fold import counts, fold
from normfold.export.forms.fewer_bits import in_fewer_bits
from normfold.export.forms.measure import TimeComparison, shapes_of
from normfold.export.forms.precision import check_precision
from normfold.export.forms.timed import check_timed, free_lengths, timed_inputs
from normfold.export.forms.variants import branches_apart, choose, proved_variants, rewritten_variants
from normfold.export.graphs.exact import Graph, unrounded
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.blocks import refusing
from normfold.export.inputs.samples import fit, read_sample
from normfold.export.inputs.specs import random_inputs
from normfold.export.proof.accepted_sizes import sizes_of, sizes_of_both
from normfold.export.proof.numbers import drawn_for
from normfold.export.proof.other_paths import within_one_path
from normfold.export.proof.proof import Proof
from normfold.export.proof.rows_alone import mixed_rows
from normfold.export.proof.tables import within_tables
from normfold.export.proof.threads import Threads
from normfold.export.proof.verify import Case
from normfold.export.publishing.aside import put_back
from normfold.export.publishing.config import OutputSpec, alone_note, limits, max_batch_size, render_config
from normfold.export.publishing.destination import Destination, check_destination, check_name
from normfold.export.publishing.golden import golden, golden_case, tolerance
from normfold.export.publishing.html_report import as_html
from normfold.export.publishing.kept import kept_notes, largest_batch
from normfold.export.publishing.labels import label_notes, labelled_output, read_labels
from normfold.export.publishing.outputs import output_specs
from normfold.export.publishing.provenance import stamp, versions, write_provenance
from normfold.export.publishing.publish import Publication, publish
from normfold.export.publishing.report import ExportReport, Published, as_json
from normfold.export.request import ExportRequest
from normfold.export.sources.ends import with_ends
from normfold.export.sources.opening import open_origin
from normfold.export.sources.origin import Origin, Request
from normfold.finite_json import finite_json
from normfold.protos.datatypes import by_dtype

__all__ = ["Folded", "Progress", "export_model", "fold_and_prove"]

Progress = Callable[[str], None]

#: ONNX IR version that is written for each opset: that of the ONNX release which introduced the opset, so that every
#: runtime that knows the opset reads the file.
IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13, 27: 13, 28: 14}


@dataclass(frozen=True)
class Folded:
    """A network as a folded graph, with the proof that both compute the same."""

    #: The bytes of ``model.onnx``, and the same before its weights were rounded, where there is such a graph.
    content: bytes
    exact: bytes | None
    #: The bytes of the graph before the fold.
    unfolded: bytes
    outputs: tuple[OutputSpec, ...]
    proof: Proof
    #: The report; the model's name, version and path are not filled in yet.
    report: ExportReport


def export_model(request: ExportRequest, progress: Progress = lambda step: None) -> ExportReport:
    """Export as ``request`` says and return the report; ``progress`` is called with the name of each step.

    Raises ExportError (see :mod:`normfold.export.errors`); then nothing is published.
    """
    check_name(request.name)
    check_opset(request.opset, OPSETS)
    check_variant(request.variant)
    check_threads(request.threads)
    labels = read_labels(request.labels) if request.labels else None
    check_precision(request.precision, bool(request.test_samples))
    progress("load the network")
    files = [read_sample(path, request.allow_nonfinite) for path in (*request.samples, *request.test_samples)]
    origin = open_origin(
        Request(
            source=request.source,
            weights=request.weights,
            weights_key=request.weights_key,
            weights_sha256=request.weights_sha256,
            untrained=request.untrained,
            inputs=request.inputs,
            arguments=request.arguments,
        ),
        files,
    )
    origin = with_ends(origin, request.ends)
    destination = Destination(request.repository, request.name, request.version, request.overwrite)
    recovered = put_back(destination)
    check_destination(destination, origin.specs)
    samples = [Case("sample", f.name, fit(f, origin.specs)) for f in files]
    given = len(request.samples)
    folded = fold_and_prove(
        origin,
        samples,
        request.name,
        request.opset,
        progress,
        variant=request.variant,
        remeasure=request.remeasure,
        threads=request.threads,
        fold_all=request.fold_all,
        labels=labels or (),
        time_at=request.time_at,
    )
    sizes = folded.proof.sizes
    labelled = labelled_output(labels, folded.outputs) if labels else None
    content, report = folded.content, replace(folded.report, model=request.name)
    if request.precision is not None:
        progress(f"reduce it to {request.precision}")
        content, reduced = in_fewer_bits(
            Graph(content, folded.exact),
            request.precision,
            folded.proof,
            samples[:given],
            samples[given:],
            timed_inputs(sizes, request.time_at),
            even_if_slower=request.even_if_slower,
            remeasure=request.remeasure,
            threads=request.threads,
            apart=_apart(folded) if request.precision == "int8" and not request.fold_all else None,
        )
        report = replace(report, precision=reduced, sha256=hashlib.sha256(content).hexdigest())
    progress("publish")
    mixed = mixed_rows(folded.proof, origin.raw) if max_batch_size(sizes.specs, folded.outputs) > 1 else ""
    config = render_config(request.name, sizes.specs, folded.outputs, labelled, sizes.trace, alone=bool(mixed))
    model_files = {"config.pbtxt": config.encode()}
    if labels:
        model_files["labels.txt"] = ("\n".join(labels) + "\n").encode()
    max_batch = largest_batch(destination, model_files)
    report = replace(
        report,
        notes=(
            *report.notes,
            # with fewer bits they are warnings, beside what the calibration says
            *(() if report.precision else unlike_training(folded.unfolded, samples, sizes.specs)),
            *alone_note(mixed),
            *label_notes(labels or ()),
            *kept_notes(destination, model_files, sizes.specs),
            *recovered,
        ),
        max_batch_size=max_batch,
        limits=limits(sizes.specs, max_batch),
    )
    case = golden_case(folded.proof.telling)
    fewer_bits = None if report.precision is None else report.precision.verification
    allowed = tolerance(report.verification, case.kind, fewer_bits)
    version_files = {
        "model.onnx": content,
        "golden.json": golden(case.inputs, Runtime(content, optimised=True).run(case.inputs), allowed),
        "export.json": (finite_json(as_json(report), 2) + "\n").encode(),
        "report.html": as_html(report, folded.unfolded, folded.content).encode(),
    }
    publication = Publication(request.name, model_files, version_files)
    path = publish(request.repository, publication, request.version, request.overwrite)
    return replace(report, version=int(path.name), path=str(path))


def fold_and_prove(
    origin: Origin,
    samples: Sequence[Case],
    name: str,
    opset: int,
    progress: Progress = lambda step: None,
    *,
    variant: str = AUTO,
    remeasure: bool = False,
    threads: int = 1,
    fold_all: bool = False,
    labels: Sequence[str] = (),
    time_at: Mapping[str, int] = MappingProxyType({}),
) -> Folded:
    """Write ``origin`` as a graph, fold it, prove it and time it; the options are those of ExportRequest.

    Raises ExportError where the proof fails, where the network has no such variant, and, before the capture, where no
    output has one entry for each label.
    """
    variant = "folded" if fold_all and variant == AUTO else variant
    with Threads() as torch_threads:
        progress("find the sizes it takes")
        origin = drawn_for(origin, samples)
        sizes = sizes_of(origin, samples)
        check_timed(sizes, time_at, origin.run)
        torch_threads.fit(lambda: origin.run(random_inputs(sizes.specs, sizes.trace, np.random.default_rng(0))))
        if labels:
            answer = origin.run(random_inputs(sizes.specs, sizes.trace, np.random.default_rng(0)))
            labelled_output(labels, [OutputSpec(n, by_dtype(a.dtype), a.shape) for n, a in answer.items()])
        progress("capture the graph")
        captured = origin.graph(sizes.specs, sizes.trace, opset)
        if captured.ir_version >= 4:  # the weights of older files are inputs of the graph too, until the fold
            captured.ir_version = _ir_version(captured)
        model = unrounded(captured) or captured
        unfolded = Graph.of(model)
        splits = captured.meta.get(SPLITS, ())
        with refusing(splits):
            run = Runtime(unfolded.content, optimised=False).run
            sizes = sizes_of_both(origin, samples, sizes, run, splits)
            sizes = within_one_path(origin, sizes, captured.meta.get(GUARDS, ()), run)
            sizes = within_tables(origin.run, unfolded.content, sizes, run)
            progress("compute the network in float64")
            proof = Proof(origin, sizes, samples, unfolded)
        progress("fold the BatchNorms")
        folding = fold(model, fold_all=fold_all)
        model.ir_version = _ir_version(model)
        write_provenance(model, name, origin, sizes, folding)
        folded = Graph.of(model)
        progress("prove that it is the same network")
        made = {"folded": folded, **rewritten_variants(unfolded, folded, variant)}
        graphs, left_out = proved_variants(proof, made, variant)
        progress("time it")
        inputs = timed_inputs(sizes, time_at)
        choice = choose({name: graph.content for name, graph in graphs.items()}, inputs, variant, remeasure, threads)
        outputs = output_specs(model, Runtime(folded.content, optimised=True), sizes)
        chosen_by = "measurement" if variant == AUTO else "request"
        chosen, final = graphs[choice.variant].model(), folded
        published = Published(choice.variant, *counts(chosen), chosen_by)
        if choice.variant != "folded":
            stamp(chosen, model, published)
            final = Graph.of(chosen)
        content, proved = final.content, proof.of(final)
        proof.require_same(proved, final, choice.variant)
        times = {v.name: v.median_ms for v in choice.variants}
        timing = TimeComparison(
            times["unfolded"],
            times[choice.variant],
            choice.rounds,
            shapes_of(inputs),
            choice.remembered,
            free_lengths(sizes, time_at),
        )
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
            versions=versions(),
            variants=choice.variants,
            notes=(*origin.notes, *sizes.notes, *proof.notes, *left_out),
        )
        return Folded(content, final.exact, unfolded.content, outputs, proof, report)


def _apart(folded: Folded) -> Graph | None:
    """Return the published form with branches apart, for int8; None where the fold took none into convolutions."""
    if not folded.report.folding.sums_removed:
        return None
    published = Graph(folded.content, folded.exact)
    return branches_apart(folded.proof.unfolded, published, folded.report.published.variant)


def _ir_version(model: ir.Model) -> int:
    return IR_VERSIONS.get(model.opset_imports.get("", 0), model.ir_version)
