"""How much float32 itself costs a network: the unit of the second part of the proof.

A folded graph rounds other numbers, in another order, than the network as it was written. Neither is more right than
the other. So the error of a float32 file is compared with the errors of the same network computed in other ways that
are as right. Its weights and inputs are each moved by one unit in the last place up, down or not at all (half a unit on
average), as a rounding moves them. The graph is run as it is written, and as onnxruntime optimises it, which adds in
another order. That gives 2 · (MOVES + 1) = 12 errors, of which the largest is the network's own, e. A file passes where

    e(file) <= 3 e + 4 ulp,        ulp = 2^-23   (2^-10, 2^-7 for a file that computes partly in float16, bfloat16)

for each output and kind of case. The factor: of 12 draws and one more from the same distribution, the one more is
larger than all others in 1 of 13 cases, so e alone would refuse right files. It is larger than 3 times the largest
with a probability of 2·10^-4 where errors are Gaussian and the output is a single number on a single case, and of less
than 10^-5 from four numbers on (simulated, 400,000 draws). The floor is one rounding each for bias, product, sum and
the last operator, so that a network whose errors happen to be 0 is not asked for more than float32 holds.

A file that does not pass is still the same function: :mod:`normfold.export.proof.algebra` proved that. It rounds
worse, so another form of the network is published in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from normfold.export.graphs.exact import narrow_types
from normfold.export.graphs.runtime import Runtime
from normfold.export.proof.moving import moved_run, moved_weights
from normfold.export.proof.verify import Run

__all__ = ["FACTOR", "FLOOR", "INDEX_SHARE", "bound", "bound_of", "moved_runs"]

#: Times the network's own error.
FACTOR = 3.0
#: Relative floor: four units in the last place of float32.
FLOOR = 4 * 2.0**-23
#: Units in the last place of the types with fewer digits.
UNITS = {ir.DataType.FLOAT16: 2.0**-10, ir.DataType.BFLOAT16: 2.0**-7}
#: Share of an integer output (argmax) that may differ beyond the network's own: two scores closer than a rounding.
INDEX_SHARE = 1e-3
#: Copies of the network with moved weights and inputs.
MOVES = 5


def bound(own: float, integers: bool) -> float:
    """Return the error that a file may have, from the network's own error ``own``."""
    return FACTOR * own + (INDEX_SHARE if integers else FLOOR)


def bound_of(*contents: bytes) -> Callable[[float, bool], float]:
    """Return the bound for graphs (ONNX bytes): the largest of the units of types that they compute in counts."""
    units = [UNITS[narrow] for content in contents for narrow in narrow_types(content)[:1]]
    if not units:
        return bound
    floor = 4 * max(units)
    return lambda own, integers: FACTOR * own + (INDEX_SHARE if integers else floor)


def moved_runs(unfolded: bytes) -> Iterator[Run]:
    """Yield the moved copies of the graph in ``unfolded``, each as it is written and as onnxruntime optimises it."""
    for seed in range(MOVES):
        content = moved_weights(unfolded, seed)
        for optimised in (False, True):
            yield moved_run(Runtime(content, optimised=optimised).run, seed)
