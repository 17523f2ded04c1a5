"""The metadata of ``model.onnx``, which say what it was made of.

They hold neither time nor path, so that the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import platform
from importlib import metadata

import onnx_ir as ir

from normfold.export.capture.tidy import strip
from normfold.export.fold import FoldReport
from normfold.export.inputs.sizes import Sizes
from normfold.export.inputs.specs import Dimension, dimensions
from normfold.export.publishing.report import Published
from normfold.export.sources.origin import Origin

__all__ = ["proved_sizes", "stamp", "versions", "write_provenance"]


def write_provenance(model: ir.Model, name: str, origin: Origin, sizes: Sizes, folding: FoldReport) -> None:
    """Replace every trace of how the folded graph was made by its name, its producer and what it was made of."""
    strip(model)
    model.producer_name, model.producer_version = "normfold", metadata.version("normfold")
    model.graph.name = _printable(name)
    facts = {
        "source": _printable(origin.name),
        "source_sha256": origin.sha256,
        "weights_sha256": origin.weights_sha256,
        "inputs": "; ".join(str(s) for s in sizes.specs),
        "proved": proved_sizes(sizes),
        "form": "folded",
        "batchnorms": f"{folding.batchnorms_before} before, {folding.batchnorms_after} after folding",
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
    }
    model.metadata_props.update({f"normfold.{k}": v for k, v in sorted(facts.items()) if v})


def _printable(name: str) -> str:
    """A file's name without what a graph may not hold: bytes that are no text, and control characters."""
    return "".join(c if c.isprintable() else "_" for c in name)


def proved_sizes(sizes: Sizes) -> str:
    """Return the sizes that the proof holds for as JSON. A server reads them and refuses requests of other sizes.

    Schema 1: for each dimension the smallest size, the largest (null: no bound), the step from one size to the next,
    and the sizes that the proof really ran; for each input its dimensions, as sizes and names.
    """
    content = {
        "schema": 1,
        "dimensions": {d.name: _dimension(d, sizes) for d in dimensions(sizes.specs)},
        "inputs": {s.name: [d if isinstance(d, int) else d.name for d in s.dims] for s in sizes.specs},
    }
    return json.dumps(content)


def _dimension(d: Dimension, sizes: Sizes) -> dict[str, object]:
    step = d.step or 1
    low = d.low or 1
    low += (sizes.trace[d.name] - low) % step  # a declared bound need not be a whole number of steps away
    known = Dimension(d.name, low, d.high, step)
    tried = sorted({each[d.name] for each in sizes.proof if known.holds(each[d.name])})
    return {"low": low, "high": d.high, "step": step, "tried": tried}


def stamp(model: ir.Model, folded: ir.Model, published: Published) -> None:
    """Give another variant the metadata of the folded graph, with the variant's name, in place."""
    strip(model)
    model.producer_name, model.producer_version = folded.producer_name, folded.producer_version
    model.graph.name = folded.graph.name
    model.metadata_props.update(folded.metadata_props)
    if published.variant in ("unfolded", "blocked"):
        before, _, _ = folded.metadata_props["normfold.batchnorms"].partition(",")
        left = f"{published.batchnorms} in the {published.variant} form"
        model.metadata_props["normfold.batchnorms"] = f"{before}, {left}"
    model.metadata_props["normfold.form"] = published.variant


def versions() -> dict[str, str]:
    """Return the versions of the packages and of Python that make an export."""
    names = ("normfold", "torch", "onnx", "onnx-ir", "onnxscript")
    return {**{n: metadata.version(n) for n in names}, "python": platform.python_version()}
