"""Is the answer to a row the same alone and beside other rows? Only then may a server run several requests together.

After `x - x.mean()` over a whole batch, the answer to one client depends on the rows of another. The proof does not see
this, because the graph does the same as the network. So two requests are run together and each alone.

In float64 the two ways differ by rounding alone, far less than 10^-9 of the output's scale. A network that amplifies
rounding may differ by 2^-23 times what its answer moves by where its inputs move by a unit in the last place of
float32: a unit of float64 is smaller by 2^-29, which leaves a factor of 64. A reference in float32 may differ by what
network and graph may on one path (:mod:`normfold.export.proof.paths_at`), and by what the narrowest type rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from normfold.export.inputs.sizes import batch_dimension
from normfold.export.inputs.specs import random_inputs
from normfold.export.proof.moving import moved_run
from normfold.export.proof.numbers import numberless
from normfold.export.proof.paths_at import FACTOR, SAME
from normfold.export.proof.proof import Proof
from normfold.export.proof.rounding import INDEX_SHARE, bound_of
from normfold.export.proof.verify import Arrays, Case, largest_errors, verify
from normfold.export.user_code import first_line

__all__ = ["UNSEEN", "mixed_rows"]

#: The largest difference of a well-conditioned network in float64, of the output's scale.
EXACT = 1e-9
#: One request is ordinary, the other this many times as large, so that a mean or a maximum of both is far from each.
LARGER = (10.0, 1e4)
UNSEEN = "random inputs give no numbers"


def mixed_rows(proof: Proof, raw: Callable[[Arrays], Arrays] | None = None) -> str:
    """Return how far a row's answer depends on other rows; "" if it does not, or if no batch holds two requests.

    UNSEEN where random inputs give no numbers, by which it could be seen.
    ``raw`` is that of the origin. All inputs and outputs must have the batch dimension first.
    """
    batch = batch_dimension(proof.sizes.specs)
    rows = batch.low or 1 if batch else 1
    if batch is None or 2 * rows > (batch.high or 2 * rows):
        return ""
    sizes = {**proof.sizes.trace, batch.name: rows}
    return next((found for scale in LARGER if (found := _mixed(proof, raw, sizes, rows, scale))), "")


def _mixed(
    proof: Proof, raw: Callable[[Arrays], Arrays] | None, sizes: Mapping[str, int], rows: int, scale: float
) -> str:
    rng = np.random.default_rng(0)
    requests = [random_inputs(proof.sizes.specs, sizes, rng, each) for each in (1.0, scale)]
    requests = [dict(raw(request)) if raw else request for request in requests]
    together = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
    try:
        if numberless(proof.reference(requests[0])):
            return UNSEEN
        answer = proof.reference(together)
    except Exception as error:
        reason = first_line(error)
        return f"the network does not take two requests together ({reason})"

    def in_batch(inputs: Arrays) -> Arrays:
        first = rows if inputs is requests[1] else 0
        return {name: array[first : first + rows] for name, array in answer.items()}

    cases = [Case(kind, kind, request) for kind, request in zip(("first", "second"), requests, strict=True)]
    own = largest_errors(proof.reference, [moved_run(proof.reference, 0)], cases)
    # a network may compute a part in float32 although its weights are in float64: its output shows that
    exact = proof.name.endswith("float64") and not any(
        array.dtype.kind == "f" and array.dtype.itemsize < 8 for array in answer.values()
    )
    bound = _exact_bound if exact else _plain_bound(proof.unfolded.content)
    found = verify(proof.reference, in_batch, cases, proof.name, own, bound)
    worst = max((d for d in found.differences if not d.passed), key=lambda d: d.relative, default=None)
    if worst is None:
        return ""
    how = (
        "has another shape, or NaN at other places," if worst.trouble else f"moves by {worst.relative:.0e} of its scale"
    )
    return f"output '{worst.output}' of a request {how} beside another request"


def _exact_bound(own: float, integers: bool) -> float:
    return INDEX_SHARE if integers else max(EXACT, 2.0**-23 * own)


def _plain_bound(content: bytes) -> Callable[[float, bool], float]:
    rounding = bound_of(content)
    return lambda own, integers: max(SAME, rounding(FACTOR * own, integers))
