"""Export networks with trained-like statistics, as ``normfold export`` does, and write down what became of each.

    python -m benches.zoo.export OUT [NAME ...] [--zoo]

Without names all networks of benches/zoo/more.py (with --zoo: of the zoo itself) are exported that are not in OUT.json
yet, so that a run can go on where it was stopped. OUT.md is the table. A network is *exported* with its proof,
*refused* with a sentence, or a *fault*: an error that is no sentence, or a proof that fails.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benches.zoo.build import make
from benches.zoo.more import NETWORKS
from benches.zoo.network import Network, without_kernels
from benches.zoo.networks import NETWORKS as ZOO

from normfold.whole_file import write_whole

#: CPU time for one network.
SECONDS = 600


@dataclass(frozen=True)
class Line:
    """What became of one network."""

    network: str
    package: str
    outcome: str
    before: int = 0
    after: int = 0
    form: str = ""
    algebra: str = ""
    rounding: str = ""
    why: str = ""


def exported(network: Network) -> Line:
    """Make, randomise and export one network."""
    from normfold.export.errors import ExportError, VerificationError
    from normfold.export.notebook import export_network

    who = network.name, _package(network.package)
    try:
        module = make(network)
    except Exception as error:
        return Line(*who, "not built", why=f"{type(error).__name__}: {error}")
    dims = ",".join(str(d) for d in network.shape)
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = export_network(module, repository=folder, name="net", inputs=f"x=FP32[{dims}]")
        except VerificationError as error:
            return Line(*who, "FAULT", why=str(error))
        except ExportError as error:
            return Line(*who, "FAULT" if "stopped at the step" in str(error) else "refused", why=str(error))
        except _LateError:
            return Line(*who, "not done", why=f"it takes more than {SECONDS} s of CPU time here")
        except Exception as error:
            return Line(*who, "FAULT", why=f"{type(error).__name__}: {error}")
    folding, worst = report.folding, report.verification.worst
    algebra = "—" if report.algebra is None else f"{report.algebra.worst.relative:.0e}"
    kept = sorted({fold.reason for fold in folding.folds if not fold.folded})
    notes = [n for n in report.notes if "float64" in n or "rounds worse" in n]
    return Line(
        *who,
        "exported",
        folding.batchnorms_before,
        folding.batchnorms_after,
        report.published.variant,
        algebra,
        f"{worst.relative:.0e} of {worst.bound:.0e}",
        "; ".join([*notes, *(kept[:1])]),
    )


class _LateError(BaseException):
    """The time is over."""


def _late(*_: object) -> None:
    raise _LateError


def page(lines: Sequence[Line]) -> str:
    """Return the table as Markdown."""
    kinds = ", ".join(
        f"{sum(line.outcome == kind for line in lines)} {kind}" for kind in dict.fromkeys(one.outcome for one in lines)
    )
    text = [
        "# Networks exported at the first try",
        "",
        "Written by `python -m benches.zoo.export`. Each network is made by its package, gets BatchNorm statistics as",
        "training leaves (benches/zoo/randomise.py: 15 % of gamma negative, 3 % zero) and is exported with its proof.",
        "",
        f"{len(lines)} networks: {kinds}.",
        "",
        "| network | package | outcome | BatchNorms | form | same function to | rounding | why, or what stays |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in lines:
        norms = f"{one.before} → {one.after}" if one.outcome == "exported" else ""
        why = one.why.replace("|", "\\|").replace("\n", " ")[:300]
        text.append(
            f"| {one.network} | {one.package} | {one.outcome} | {norms} | {one.form} | "
            f"{one.algebra} | {one.rounding} | {why} |"
        )
    return "\n".join(text) + "\n"


def _package(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the files to write, without .json and .md")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--zoo", action="store_true", help="the networks of the zoo itself")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGPROF, _late)
    kept = options.out.with_suffix(".json")
    lines = {k: Line(**v) for k, v in json.loads(kept.read_text()).items()} if kept.is_file() else {}
    without_kernels()
    for network in ZOO if options.zoo else NETWORKS:
        if network.name in lines or (options.names and network.name not in options.names):
            continue
        began = time.monotonic()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            one = exported(network)
        except _LateError:
            one = Line(
                network.name, network.package, "not done", why=f"it takes more than {SECONDS} s of CPU time here"
            )
        signal.setitimer(signal.ITIMER_PROF, 0)
        lines[network.name] = one
        took = f"{time.monotonic() - began:.0f} s"
        print(f"{one.network}: {one.outcome} {one.before} -> {one.after}, {took} {one.why[:300]}", flush=True)
        write_whole(kept, json.dumps({k: asdict(v) for k, v in lines.items()}, indent=1).encode())
        write_whole(options.out.with_suffix(".md"), page(list(lines.values())).encode())


if __name__ == "__main__":
    main()
