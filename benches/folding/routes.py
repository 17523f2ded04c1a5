"""Routes: the tools that can remove the BatchNorms of an ONNX file today, each as one function of a file.

Each route imports its tool when it is called, so that a tool that is not installed costs only its own column.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

#: A function that reads the first file and writes the second.
Route = Callable[[Path, Path], None]


def onnxscript_rules(source: Path, target: Path) -> None:
    """onnxscript's optimiser, then its default rewrite rules, some of which fold BatchNorms."""
    import onnx_ir as ir
    from onnxscript import optimizer, rewriter

    model = ir.load(source)
    optimizer.optimize(model)
    ir.save(rewriter.rewrite(model), target)


def onnxsim(source: Path, target: Path) -> None:
    import onnxsim as tool

    simplified, _ = tool.simplify(onnx.load(source))
    onnx.save(simplified, target)


def onnxslim(source: Path, target: Path) -> None:
    import onnxslim as tool

    onnx.save(tool.slim(onnx.load(source)), target)


def onnxoptimizer(source: Path, target: Path) -> None:
    """All of onnxoptimizer's fuse and eliminate passes."""
    import onnxoptimizer as tool

    onnx.save(tool.optimize(onnx.load(source), tool.get_fuse_and_elimination_passes()), target)


def onnxruntime_extended(source: Path, target: Path) -> None:
    onnxruntime_saved(source, target, "ORT_ENABLE_EXTENDED")


def onnxruntime_all(source: Path, target: Path) -> None:
    onnxruntime_saved(source, target, "ORT_ENABLE_ALL")


def onnxruntime_saved(source: Path, target: Path, level: str) -> None:
    """Save the graph that onnxruntime would run."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def normfold(source: Path, target: Path) -> None:
    import onnx_ir as ir

    from normfold.export.fold import fold

    model = ir.load(source)
    fold(model)
    ir.save(model, target)


#: By the names in the table, in the order of its columns.
ROUTES: dict[str, Route] = {
    "onnxscript": onnxscript_rules,
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "onnxoptimizer": onnxoptimizer,
    "onnxruntime EXTENDED": onnxruntime_extended,
    "onnxruntime ALL": onnxruntime_all,
    "normfold": normfold,
}
