"""The published float32 file in fewer bits: which inputs calibrate, which measure, and how little or much that says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from normfold.export.calibration.rows import Division, Rows, divide, only_finite, parts, warnings_on
from normfold.export.calibration.scale import unlike_training
from normfold.export.calibration.synthetic import synthetic
from normfold.export.errors import ExportError, InputSpecError
from normfold.export.forms.equalised import Equalised, other_graphs
from normfold.export.forms.precision import Arrays, PrecisionReport, reduce_precision
from normfold.export.graphs.exact import Graph
from normfold.export.inputs.specs import InputSpec
from normfold.export.proof.proof import Proof
from normfold.export.proof.verify import Case

__all__ = ["in_fewer_bits", "in_pieces"]


#: Pieces that the rows which calibrate are divided into, at most: one row each, where there are not more.
PIECES = 64


def in_fewer_bits(
    graph: Graph,
    precision: str,
    proof: Proof,
    samples: Sequence[Case],
    tests: Sequence[Case],
    timed: Arrays,
    *,
    even_if_slower: bool = False,
    remeasure: bool = False,
    threads: int = 1,
    apart: Graph | None = None,
) -> tuple[bytes, PrecisionReport]:
    """Return the float32 ``graph`` in ``precision``; samples calibrate int8, tests measure.

    apart: the same network with branches apart (:func:`normfold.export.forms.variants.branches_apart`), where it has
    such branches; int8 is written from it where its error is smaller so, unless that file cannot be published.

    Raises what :func:`normfold.export.forms.precision.reduce_precision` raises, and InputSpecError where int8 has
    neither samples nor BatchNorms to take its value ranges from.
    """
    specs = proof.sizes.specs
    inputs = _inputs(precision, proof, samples, tests)
    warnings = (
        *warnings_on(inputs, precision, specs),
        *unlike_training(proof.unfolded.content, [*samples, *tests], specs),
    )
    inputs = in_pieces(inputs, specs)
    others: list[Equalised] = []
    if inputs.calibration is not None:
        pieces = [case.inputs for case in inputs.calibration.cases]
        others = other_graphs(graph, apart, pieces, lambda made: _proved(proof, made))

    def reduced(others: Sequence[Equalised]) -> tuple[bytes, PrecisionReport]:
        return reduce_precision(
            graph.content,
            precision,
            proof.reference,
            inputs,
            timed,
            even_if_slower=even_if_slower,
            remeasure=remeasure,
            threads=threads,
            warnings=warnings,
            others=others,
        )

    try:
        return reduced(others)
    except ExportError:
        together = [one for one in others if not one.apart]
        if len(together) == len(others):
            raise
        return reduced(together)  # fewer operators: they may be faster than float32 where those with branches are not


def _proved(proof: Proof, graph: Graph) -> bool:
    """Whether a graph is the same function as the network in float64, and rounds no worse than the network."""
    proved = proof.of(graph)
    return proved.same and proved.rounding.passed


def in_pieces(inputs: Division, specs: Sequence[InputSpec]) -> Division:
    """Return the division with the rows that calibrate in at most about PIECES cases, so that these can be compared."""
    rows = inputs.calibration
    if rows is None:
        return inputs
    most = -(-rows.data.rows // PIECES)
    cases = tuple(part for case in rows.cases for part in parts(case, most, specs))
    return replace(inputs, calibration=replace(rows, cases=cases))


def _inputs(precision: str, proof: Proof, samples: Sequence[Case], tests: Sequence[Case]) -> Division:
    specs = proof.sizes.specs
    if precision != "int8":
        if samples or tests:
            return divide(False, samples or tests, tests, specs)
        # The cases of kind "scaled" are left out: their values leave the range that few bits can hold.
        return Division(None, Rows.of([c for c in proof.cases if c.kind == "random"], "random", "N(0, 1)", specs))
    if not samples:
        return _without_samples(proof, tests, specs)
    inputs = divide(True, samples, tests, specs)
    assert inputs.calibration is not None
    finite = only_finite(inputs.calibration, specs)
    if finite is None:
        raise InputSpecError(
            "int8 takes its value ranges from the samples, and every row that would calibrate it holds NaN or "
            "infinity: give rows without them with --sample"
        )
    return Division(finite, inputs.measured, inputs.same)


def _without_samples(proof: Proof, tests: Sequence[Case], specs: Sequence[InputSpec]) -> Division:
    """Return inputs made from the BatchNorms' statistics, to calibrate and, where there are no tests, to measure."""
    made = synthetic(proof.unfolded.content, specs, proof.sizes.trace)
    if made is None:
        raise InputSpecError(
            "int8 takes its value ranges from inputs, and this network has no BatchNorm with statistics of its "
            "training data to make some from: give real ones with --sample"
        )
    return Division(made.calibration, divide(False, tests, tests, specs).measured) if tests else made
