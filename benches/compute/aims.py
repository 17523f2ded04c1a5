"""The aims for the exported graphs, and what was reached, in float32: batch 1 and one thread, if no other is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benches.aims import unreached
from benches.compute.measure import ALL, HEADLINE, ONE, SHORT, Cell
from benches.compute.routes import COMPILED, EAGER, EXPORTED, FIXED
from benches.compute.speedups import Results, bound_by_convolutions, by_family, speedups
from benches.machine import instruction_sets
from benches.ratios import geometric_mean

#: The figure in words, and whether it reaches the aim.
Found = tuple[str, bool]
#: A network counts as slower if the time of torch's default export over ours is below this.
NO_SLOWER = 0.98
SHARE = 0.6


@dataclass(frozen=True)
class Aim:
    """One aim: its figure, and for the case that it is not reached, what bounds it and what was tried."""

    found: Callable[[Results], Found | None]
    why: str = ""


def aims(results: Results, others: Mapping[str, Results]) -> str:
    """Return a table: the aim, the figure, whether it was reached; aims for which nothing was measured are left out.

    A column for each of the ``others``, which were measured on another kind of processor, follows. Below the table
    stands why some aims were not reached here.
    """
    lines = [f"| aim | measured | reached |{''.join(f' {processor} |' for processor in others)}"]
    lines.append("|---" * (3 + len(others)) + "|")
    said = []
    for name, aim in AIMS.items():
        found = aim.found(results)
        if found is not None:
            there = [aim.found(theirs) for theirs in others.values()]
            cells = "".join(f" {one[0] if one else ''} |" for one in there)
            lines.append(f"| {name} | {found[0]} | {'yes' if found[1] else 'no'} |{cells}")
            said.append((name, found[1], aim.why))
    return "\n".join(lines + unreached("What bounds those that are not reached, and what was tried:", said))


def _mean(route: str, least: float, cell: Cell = HEADLINE) -> Callable[[Results], Found | None]:
    def found(results: Results) -> Found | None:
        ratios = speedups(results, route, cell)
        mean = geometric_mean(ratios.values())
        return (f"{mean:.2f} × ({len(ratios)} networks)", mean >= least) if ratios else None

    return found


def _over_torchs(results: Results) -> Found | None:
    return _mean(EXPORTED, 1.9 if "AVX-512" in instruction_sets() else 1.75)(results)


def _worst(route: str = EXPORTED, least: float = NO_SLOWER, cell: Cell = HEADLINE) -> Callable[[Results], Found | None]:
    def found(results: Results) -> Found | None:
        ratios = speedups(results, route, cell)
        if not ratios:
            return None
        slower = sorted((ratio, name) for name, ratio in ratios.items() if ratio < least)
        if not slower:
            name = min(ratios, key=ratios.__getitem__)
            return f"the least is {name}, {ratios[name]:.2f} ×", True
        return "; ".join(f"{name} {ratio:.2f} ×" for ratio, name in slower), False

    return found


def _families(route: str) -> Callable[[Results], Found | None]:
    def found(results: Results) -> Found | None:
        families = by_family(results, route)
        behind = sorted((ratio, family) for family, ratio in families.items() if ratio < 1)
        said = "; ".join(f"{family} {ratio:.2f} ×" for ratio, family in behind) or f"ahead in all {len(families)}"
        return (said, not behind) if families else None

    return found


def _share(results: Results) -> Found | None:
    shares = bound_by_convolutions(results)
    if not shares:
        return None
    mean, reached = geometric_mean(shares.values()), sum(share >= SHARE for share in shares.values())
    best = max(shares, key=shares.__getitem__)
    said = f"{mean:.0%}, {reached} of {len(shares)} networks reach it; the most is {best}, {shares[best]:.0%}"
    return said, mean >= SHARE


_ALL, _MANY = Cell(1, SHORT, ALL), Cell(32, SHORT, ONE)
_NOISE = (
    "The two are the same kernels there, or nearly: what is left is the noise of a machine that is not alone. "
    "The ± in the table of the networks is its size."
)
_AVX512 = (
    "With AVX2 it is reached. AVX-512 makes OpenVINO's kernels faster than onnxruntime's by more: ours run at 85 % of "
    "the peak of a matrix product there, so little is left to gain but by other kernels."
)
AIMS: dict[str, Aim] = {
    "torch's default export in onnxruntime: 1.75 × faster with AVX2 (1.9 × with AVX-512)": Aim(
        _over_torchs,
        "Where convolutions take most of the time both run the same kernels, and a fold gains a few percent: PointNet, "
        "U-Nets, recurrent layers. The gain comes from the layout (widened, lifted, blocked); each is timed, and taken "
        "where it is faster. Large dense convolutions (crepe) run near the peak of a matrix product already; six "
        "other ways to write them were tried (`python -m benches.folding.phases`: parts of the channels or taps, one "
        "product over windows, fast FIR filters). None is faster on more than two of five layers, and the one that is "
        "on crepe's largest (1.3 ×) has weights of 3.4 times the size, so none is taken.",
    ),
    "torch's default export: no network more than 2 % slower": Aim(_worst(), _NOISE),
    "OpenVINO: 2.0 × faster": Aim(_mean("OpenVINO", 2.0), _AVX512),
    "OpenVINO compiled for the one shape: 1.9 × faster": Aim(_mean(FIXED, 1.9), _AVX512),
    "OpenVINO: no network behind it": Aim(
        _worst("OpenVINO", 1.0),
        "Large dense convolutions (penn_crepe) run in onnxruntime at the peak of a matrix product. With AVX-512, "
        "OpenVINO's own convolution is faster than that product. What was tried stands in the first of these lines.",
    ),
    "OpenVINO compiled for the one shape: no network behind it": Aim(
        _worst(FIXED, 1.0),
        "It knows the length, where our file takes any and computes bounds from it at each run; "
        "penn_crepe: see the line above.",
    ),
    "OpenVINO: behind on no family": Aim(_families("OpenVINO")),
    "OpenVINO compiled for the one shape: behind on no family": Aim(_families(FIXED)),
    "all threads, torch's default export: 1.5 × faster": Aim(
        _mean(EXPORTED, 1.5, _ALL), "Two threads on two cores that other programs use, too: see the next line."
    ),
    "all threads, torch's default export: no network more than 2 % slower": Aim(
        _worst(cell=_ALL),
        "By the clock, with two threads on two cores: whatever else wants a core stops both; on the processor with "
        "AVX-512 tests ran on them, too, at the lowest priority. Forms are chosen at the "
        "threads of the server (`--threads`), and a server takes one thread for a run where that is faster; the line "
        "*all threads, to the faster of one and all* says what that brings.",
    ),
    "batch 32, OpenVINO: no network behind it": Aim(
        _worst("OpenVINO", 1.0, _MANY),
        "One file serves all batches. Its form is chosen for a single row, and on these networks it is the fastest of "
        "our forms for 32 rows, too; OpenVINO's kernels take several rows at once.",
    ),
    "PyTorch eager: 3.5 × faster": Aim(_mean(EAGER, 3.5)),
    "torch.compile with freezing: 2.8 × faster": Aim(_mean(COMPILED, 2.8)),
    "networks bound by convolutions: at least 60 % of the multiply-add peak": Aim(_share),
}
