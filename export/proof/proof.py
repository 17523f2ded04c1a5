"""The cases that an exported graph is proved on, and the proof itself.

    random   N(0, 1) at the traced sizes, and once at every corner of the dynamic dimensions
    scaled   the same times 10^-4 … 10^4
    sample   the user's own inputs

First the captured graph is compared with the network, then every folded form of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normfold.export.errors import CaptureError, ExportError, VerificationError
from normfold.export.graphs.runtime import Runtime
from normfold.export.inputs.sizes import Sizes
from normfold.export.inputs.specs import InputSpec, random_inputs
from normfold.export.proof.divergence import first_divergence
from normfold.export.proof.verify import Case, Verification, require, verify
from normfold.export.sources.origin import Arrays, Origin, Run

__all__ = ["Proof", "cases_of", "nudged"]

#: Random cases drawn at the traced sizes; one at every other set of sizes.
RANDOM_CASES = 4
#: Scales of the inputs beside N(0, 1): far below and above what a normalised signal has.
SCALES = (1e-4, 1e-2, 1e2, 1e4)

#: How much less accurate than the network in its own framework the captured graph may be, and what it may always be.
CAPTURE_FACTOR, CAPTURE_FLOOR = 32.0, 3e-4

#: Answers larger than this are computed again rather than kept.
REMEMBERED_BYTES = 16 << 20
ANOTHER_PATH = "takes another path there: give that dimension's size, or a range that it is the same in, with --input"


class Proof:
    """Proves graphs of one origin: the reference and the cases are made once."""

    def __init__(self, origin: Origin, sizes: Sizes, samples: Sequence[Case], unfolded: bytes):
        self.sizes = sizes
        self.cases = [*cases_of(sizes.specs, sizes), *samples]
        reference, self.name, self.notes = origin.reference(self.cases[0].inputs)
        self.reference = _remembered(reference)
        self.unfolded = unfolded
        plain = Runtime(unfolded, optimised=False)
        self._before: Run = _remembered(plain.run)
        self._rounded: Run = _remembered(Runtime(unfolded, optimised=True).run)
        self._require_captured(origin.run, self._before)
        if not self.name.endswith("float64"):  # its distance to itself is 0, so the unit must come from elsewhere
            self._before = _remembered(lambda inputs: plain.run(nudged(inputs)))

    def _require_captured(self, own: Run, captured: Run) -> None:
        """Raise CaptureError where the unfolded graph already is another network than the one that was given.

        The fold is judged by the unfolded graph's error, so that error must itself be what float32 costs: the
        network's own in float32, or a good deal more, since onnxruntime's kernels differ (it has no expm1). A wrong
        operator is far beyond.
        """
        cases = [c for c in self.cases if c.kind != "scaled"]
        for case in cases:
            try:
                captured(case.inputs)
            except ExportError as error:
                raise CaptureError(
                    f"the graph that was captured with {cases[0].name} does not run with {case.name}, where the "
                    f"network does. It {ANOTHER_PATH} ({error})"
                ) from error
        for d in verify(self.reference, own, captured, cases, self.name).differences:
            if d.trouble or d.relative > CAPTURE_FACTOR * d.unfolded_relative + CAPTURE_FLOOR:
                what = d.trouble or f"output '{d.output}' is off by {d.relative:.1e} of its scale on {d.kind} inputs"
                why = (
                    f"It {ANOTHER_PATH}"
                    if "its shape is" in d.trouble
                    else "Does it depend on something besides its input?"
                )
                raise CaptureError(
                    f"the graph that was captured is not the network, so nothing was folded: {what} (the network "
                    f"itself, in float32, by {d.unfolded_relative:.1e}). {why}"
                )

    def of(self, folded: bytes) -> Verification:
        """Compare the graph in ``folded``, as a server runs it, with the reference on every case."""
        after = Runtime(folded, optimised=True)
        return verify(self.reference, self._before, after.run, self.cases, self.name, self._rounded)

    def require(self, verification: Verification, folded: bytes) -> None:
        """Raise VerificationError where it failed, naming the first layer where the two graphs part ways."""
        try:
            require(verification)
        except VerificationError as error:
            layer = first_divergence(self.unfolded, folded, self.cases[0].inputs)
            if layer is None:
                raise
            message = f"{error}. The two graphs part ways first at {layer}"
            raise VerificationError(
                message, output=error.output, max_abs_diff=error.max_abs_diff, bound=error.bound
            ) from None


def _remembered(run: Run) -> Run:
    """The same function, which answers inputs it was given before from memory: several graphs are held against one."""
    known: dict[int, tuple[Arrays, Arrays]] = {}

    def answer(inputs: Arrays) -> Arrays:
        if id(inputs) not in known:
            outputs = run(inputs)
            if sum(a.nbytes for a in outputs.values()) > REMEMBERED_BYTES:
                return outputs
            known[id(inputs)] = inputs, outputs  # holding the inputs keeps their id theirs
        return known[id(inputs)][1]

    return answer


def cases_of(specs: Sequence[InputSpec], sizes: Sizes) -> list[Case]:
    """The random and the scaled cases; the same on every call."""
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
    return cases


def nudged(inputs: Arrays) -> Arrays:
    """Each float moved by half a unit in its last place, up or down: what rounding the input itself would do."""
    rng = np.random.default_rng(7)
    return {
        k: (v * (1 + rng.choice([-1, 1], v.shape) * 2.0**-24)).astype(v.dtype) if v.dtype == np.float32 else v
        for k, v in inputs.items()
    }
