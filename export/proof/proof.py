"""The cases that a network is proved on, and the proof itself, in three parts.

    capture     the captured graph is the network             float64 against float64
    algebra     a rewritten graph is the captured graph       float64 against float64, no weight rounded
    rounding    the float32 file is as exact as float32 is    float32 against float64

Only the first two can show that something is another network; then nothing is published. A file that rounds worse than
the network does is left out and another form of the network is published; the captured graph itself always can be.

    random   N(0, 1) at the traced sizes, and once at every corner of the dynamic dimensions; where the network gives
             more numbers for positive inputs |N(0, 1)|, and once N(0, 1) beside it
    scaled   the same times 10^-4 … 10^4
    raw      N(0, 1) as a client would send it to a network whose input is standardised
    masks    N(0, 1), and booleans that are true, or false, behind the end of each row
    sample   the user's own inputs

If an input is standardised, the random and the scaled cases are what the network itself sees: mean + std · N(0, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from normfold.export.errors import CaptureError, ExportError, InputSpecError, VerificationError
from normfold.export.graphs.exact import Graph, narrow_types
from normfold.export.graphs.float64 import Float64Graph
from normfold.export.graphs.runtime import Runtime
from normfold.export.graphs.usable import require_usable
from normfold.export.inputs.sizes import Sizes
from normfold.export.inputs.specs import InputSpec, random_inputs
from normfold.export.proof import rounding
from normfold.export.proof.algebra import Algebra
from normfold.export.proof.branches import BranchProof, untaken
from normfold.export.proof.divergence import first_divergence
from normfold.export.proof.masks import mask_cases
from normfold.export.proof.moving import moved_weights
from normfold.export.proof.numbers import require_numbers, telling
from normfold.export.proof.verify import Arrays, Case, Run, Verification, largest_errors, remembered, verify
from normfold.export.proof.which_size import size_apart
from normfold.export.sources.origin import Origin
from normfold.export.user_code import first_line, place_and_reason

__all__ = ["Proof", "Proved", "cases_of"]

#: Random cases drawn at the traced sizes; one at every other set of sizes.
RANDOM_CASES = 4
#: Scales of the inputs beside N(0, 1): far below and above what a normalised signal has.
SCALES = (1e-4, 1e-2, 1e2, 1e4)

#: How far the captured graph may be from the network, both in float64: an ONNX file holds scalars and attributes
#: (epsilon, slopes, 0.1 in ``x * 0.1``) in float32, so it may move as far as the network does where its numbers move by
#: a float32 unit, times CAPTURE_FACTOR; a well-conditioned one by CAPTURE_BOUND; none by more than CAPTURE_CAP.
CAPTURE_FACTOR, CAPTURE_BOUND, CAPTURE_CAP = 4.0, 1e-6, 0.1
#: The same where the network or the graph runs in float32 only. onnxruntime's kernels differ from the framework's (it
#: has no expm1), so this says less: a wrong operator is far beyond it.
PLAIN_FACTOR, PLAIN_BOUND = 32.0, 3e-4

#: How far onnxruntime's float32 results may be from the evaluator's float64 results, where the evaluator is right: in
#: units of what the float32 results move by where each number moves by a unit in the last place.
EVALUATOR_FACTOR, EVALUATOR_BOUND = 32.0, 1e-2

MASKED = (
    "Perhaps a mask at the end of rows takes another path in the network than other masks: nn.TransformerEncoder then "
    "writes zeros in the padding, unless it is built with enable_nested_tensor=False. If the mask is never like that, "
    "say so with mask=BOOL[…]:0..0 in --input, and give a --sample of masks that are"
)
TIES = (
    "It picks the largest numbers, by topk or sort: of equal ones, such as the zeros behind a ReLU, torch picks others "
    "than ONNX does. Let the answer not depend on which"
)
ANOTHER_PATH = "takes another path there: give that dimension's size, or a range that it is the same in, with --input"


@dataclass(frozen=True)
class Proved:
    """The result of the proof of one form."""

    #: Float64 against float64; None where the network cannot be computed in float64.
    algebra: Verification | None
    rounding: Verification

    @property
    def same(self) -> bool:
        """Whether it is the same function, as far as this could be shown."""
        return self.algebra is None or self.algebra.passed


def _saying_where(reference: Run, cases: Sequence[Case]) -> Run:
    """Return the same function; an error of the network names the case, and says what to do about it."""
    names = {id(case.inputs): case.name for case in cases}

    def run(inputs: Arrays) -> Arrays:
        try:
            return reference(inputs)
        except ExportError:
            raise
        except Exception as error:
            raise InputSpecError(
                f"the network does not run with {names.get(id(inputs), 'its inputs')}{place_and_reason(error)}. "
                f"If it need not take such inputs, say which it takes in --input: sizes as in L:8.., values "
                "of integers and BOOL as in mask=BOOL[N,L]:0..0"
            ) from error

    return run


class Proof:
    """Proves forms of one origin: the references, the cases and the network's own errors are computed once."""

    def __init__(self, origin: Origin, sizes: Sizes, samples: Sequence[Case], unfolded: Graph):
        """Raises CaptureError where ``unfolded``, the captured graph, is not the network.

        Raises CheckpointError where its weights are no numbers, InputSpecError where no case gives numbers.
        """
        require_usable(unfolded.model())
        self.sizes = sizes
        self.unfolded = unfolded
        self.cases = [*cases_of(sizes.specs, sizes, origin.raw), *samples]
        reference, self.name, self.notes = origin.reference(self.cases[0].inputs)
        self.reference = remembered(_saying_where(reference, self.cases))
        self._plain: Run = remembered(Runtime(unfolded.content, optimised=False).run)
        self._require_running()
        self.notes = (*self.notes, *require_numbers(self._plain, self.cases))
        self._algebra = self._make_algebra(origin.content is None)
        self._require_captured(origin.run)
        self._branches = self._make_branches()
        runs = [self._plain, Runtime(unfolded.content, optimised=True).run]
        self._bound = rounding.bound_of(unfolded.content)
        self._own = largest_errors(self.reference, [*runs, *rounding.moved_runs(unfolded.content)], self.cases)

    def _make_algebra(self, of_pytorch: bool) -> Algebra | None:
        """The proof in float64, where ONNX's evaluator reads the graph as onnxruntime does.

        A large difference may be onnxruntime's own rounding, where a network amplifies it (gates behind gates of large
        numbers). ``of_pytorch``: then the network itself, in float64, says who is right.
        """
        reason = "it quantises, or calls functions or operators that are not ONNX's own"
        if self.unfolded.exact is not None:
            try:
                algebra = Algebra(self.unfolded.exact, self.cases)
            except Exception as error:  # an operator that the evaluator does not know
                reason = first_line(error)
            else:
                errors = largest_errors(self._plain, [self._nudged()], self.cases)
                checked = verify(algebra.reference, self._plain, self.cases, "", errors, _evaluator_bound, self._plain)
                if checked.passed:
                    return algebra
                if (
                    of_pytorch
                    and verify(
                        self.reference, algebra.reference, self.cases, "", errors, _evaluator_bound, self._plain
                    ).passed
                ):
                    return algebra
                reason = f"ONNX's reference evaluator gives another output '{checked.worst.output}' than onnxruntime"
        narrow = narrow_types(self.unfolded.content)
        self.notes = (
            *self.notes,
            f"the graph cannot be computed in float64 ({reason}), so the proof compares results in "
            f"{'its own precision' if narrow else 'float32'} alone",
        )
        return None

    def _make_branches(self) -> BranchProof | None:
        if self._algebra is None or self.unfolded.exact is None:
            branches = untaken(self.unfolded.content, self.cases)
            self.notes += tuple(f"no input of the proof takes {b}, so nothing is known of it" for b in branches)
            return None
        made = BranchProof(self.unfolded.exact, self.unfolded.content, self.cases)
        self.notes += made.notes
        return made

    def _require_running(self) -> None:
        for case in self.cases:
            try:
                self._plain(case.inputs)
            except ExportError as error:
                self.reference(case.inputs)  # raises where the network does not run either
                raise CaptureError(
                    f"the graph that was captured with {self.cases[0].name} does not run with {case.name}, where the "
                    f"network does. It {ANOTHER_PATH} ({error})"
                ) from error

    def _require_captured(self, own: Run) -> None:
        """Raise CaptureError where the captured graph is not the network. ``own`` runs it in its own precision."""
        exact = self.name.endswith("float64")
        if exact and self._algebra is not None:
            moved = Float64Graph(moved_weights(self.unfolded.content, 0)).run
            cases, graph = self.cases, self._algebra.reference
            errors = largest_errors(graph, [moved], cases)
            captured = verify(self.reference, graph, cases, self.name, errors, _capture_bound)
        else:
            cases = [case for case in self.cases if case.kind != "scaled"]
            graph = self._plain
            errors = largest_errors(self.reference, [own if exact else self._nudged()], cases)
            captured = verify(self.reference, graph, cases, self.name, errors, _plain_bound, self._plain)
        for d in captured.differences:
            if not d.passed:
                what = d.trouble or f"output '{d.output}' is off by {d.relative:.1e} of its scale on {d.kind} inputs"
                why = "Does it depend on something besides its input?"
                if "its shape is" in d.trouble:
                    why = f"It {ANOTHER_PATH}"
                elif d.kind == "masks":
                    why = MASKED
                elif apart := size_apart(self.reference, graph, cases, self.sizes.specs, d.bound):
                    why = f"At the other sizes it is the network; with {apart} that {ANOTHER_PATH}"
                elif b"TopK" in self.unfolded.content:
                    why = TIES
                raise CaptureError(
                    f"the graph that was captured is not the network, so nothing was folded: {what}, where "
                    f"{d.bound:.1e} is allowed. {why}"
                )
        if exact and self._algebra is not None:
            self._note_scalars(max((d.relative for d in captured.differences), default=0.0))
        if not exact and self._algebra is not None:
            self.reference, self.name = self._algebra.reference, "the captured graph, float64"

    def _note_scalars(self, off: float) -> None:
        if off > CAPTURE_BOUND:
            self.notes += (
                "the graph holds each number of the network's code in float32, which moves the answer by "
                f"{off:.0e} of its scale. Most networks move less; the usual cause is a difference of large numbers",
            )

    def _nudged(self) -> Run:
        """Return the unfolded graph with its numbers moved by a unit in the last place."""
        return next(iter(rounding.moved_runs(self.unfolded.content)))

    def of(self, graph: Graph) -> Proved:
        """Compare a form of the network, in float64 and as a server runs it, on every case."""
        algebra = None
        if self._algebra is not None and graph.exact is not None:
            algebra = self._algebra.of(graph.exact)
            if self._branches is not None:
                algebra = self._branches.of(graph.exact, algebra)
        run = Runtime(graph.content, optimised=True).run
        return Proved(algebra, verify(self.reference, run, self.cases, self.name, self._own, self._bound, self._plain))

    @property
    def telling(self) -> list[Case]:
        """The cases on which the network gives numbers for the most outputs."""
        return telling(self._plain, self.cases)

    def require_same(self, proved: Proved, graph: Graph, form: str) -> None:
        """Raise VerificationError where a form is another network, naming the layer where the two graphs part ways."""
        if proved.same:
            return
        assert proved.algebra is not None
        worst = proved.algebra.worst
        what = worst.trouble or (
            f"output '{worst.output}' on {worst.kind} inputs is off by {worst.relative:.2e} of its scale in float64, "
            f"where {worst.bound:.0e} is allowed"
        )
        layer = first_divergence(self.unfolded.content, graph.content, self.cases[0].inputs)
        where = "" if layer is None else f". The two graphs part ways first at {layer}"
        raise VerificationError(
            f"the {form} graph is not the same network, so nothing was published: {what}{where}. This is a fault of "
            "normfold; --form unfolded publishes the network as it is",
            output=worst.output,
            max_abs_diff=worst.max_abs,
            bound=worst.bound,
        )


def _capture_bound(own: float, integers: bool) -> float:
    return min(max(CAPTURE_BOUND, CAPTURE_FACTOR * own), CAPTURE_CAP) + (rounding.INDEX_SHARE if integers else 0.0)


def _evaluator_bound(own: float, integers: bool) -> float:
    return EVALUATOR_BOUND + EVALUATOR_FACTOR * own


def _plain_bound(own: float, integers: bool) -> float:
    return min(PLAIN_FACTOR * own + PLAIN_BOUND, CAPTURE_CAP) + (rounding.INDEX_SHARE if integers else 0.0)


def cases_of(specs: Sequence[InputSpec], sizes: Sizes, raw: Callable[[Arrays], Arrays] | None = None) -> list[Case]:
    """The random, the scaled and the raw cases; the same on every call. ``raw`` is that of the origin."""
    rng = np.random.default_rng(2015)
    cases = []
    for index, assignment in enumerate(sizes.proof):
        label = " ".join(f"{k}={v}" for k, v in assignment.items()) or "as declared"
        draws = RANDOM_CASES if index == 0 else 1
        cases += [Case("random", label, random_inputs(specs, assignment, rng)) for _ in range(draws)]
    if any(s.datatype.dtype.kind == "f" for s in specs):
        cases += [
            Case("scaled", f"inputs times {scale:g}", random_inputs(specs, sizes.trace, rng, scale)) for scale in SCALES
        ]
    signed = [replace(s, positive=False) for s in specs]
    if any(s.positive for s in specs):  # a part of the network may give numbers for negative ones, too
        cases.append(Case("random", "numbers of both signs", random_inputs(signed, sizes.trace, rng)))
    cases += mask_cases(specs, random_inputs(specs, sizes.trace, rng), np.random.default_rng(2017))
    if raw is None:
        return cases
    plain = Case("raw", "N(0, 1), not around the mean", random_inputs(specs, sizes.trace, rng))
    return [*(replace(case, inputs=raw(case.inputs)) for case in cases), plain]
