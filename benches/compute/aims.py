"""The aims for the exported graphs, and the figures that were reached: batch 1, one thread, float32."""

from __future__ import annotations

from collections.abc import Callable

from benches.compute.routes import COMPILED, EAGER, EXPORTED, FIXED
from benches.compute.speedups import Results, bound_by_convolutions, by_family, speedups
from benches.ratios import geometric_mean

#: The figure in words, and whether it reaches the aim.
Found = tuple[str, bool]
#: A network counts as slower if the time of torch's default export over ours is below this.
NO_SLOWER = 0.98
SHARE = 0.6


def aims(results: Results) -> str:
    """Return a table: the aim, the figure, whether it was reached; aims for which nothing was measured are left out."""
    lines = ["| aim | measured | reached |", "|---|---|---|"]
    for name, aim in AIMS.items():
        found = aim(results)
        if found is not None:
            lines.append(f"| {name} | {found[0]} | {'yes' if found[1] else 'no'} |")
    return "\n".join(lines)


def _mean(route: str, least: float) -> Callable[[Results], Found | None]:
    def found(results: Results) -> Found | None:
        ratios = speedups(results, route)
        mean = geometric_mean(ratios.values())
        return (f"{mean:.2f} × ({len(ratios)} networks)", mean >= least) if ratios else None

    return found


def _worst(results: Results) -> Found | None:
    ratios = speedups(results, EXPORTED)
    if not ratios:
        return None
    slower = sorted((ratio, name) for name, ratio in ratios.items() if ratio < NO_SLOWER)
    if not slower:
        name = min(ratios, key=ratios.__getitem__)
        return f"the least is {name}, {ratios[name]:.2f} ×", True
    return "; ".join(f"{name} {ratio:.2f} ×" for ratio, name in slower), False


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


AIMS: dict[str, Callable[[Results], Found | None]] = {
    "torch's default export in onnxruntime: 1.5 × faster": _mean(EXPORTED, 1.5),
    "torch's default export: no network more than 2 % slower": _worst,
    "OpenVINO: 1.4 × faster": _mean("OpenVINO", 1.4),
    "OpenVINO compiled for the one shape: 1.4 × faster": _mean(FIXED, 1.4),
    "OpenVINO: behind on no family": _families("OpenVINO"),
    "OpenVINO compiled for the one shape: behind on no family": _families(FIXED),
    "PyTorch eager: 3.5 × faster": _mean(EAGER, 3.5),
    "torch.compile with freezing: 2.8 × faster": _mean(COMPILED, 2.8),
    "networks bound by convolutions: at least 60 % of the multiply-add peak": _share,
}
