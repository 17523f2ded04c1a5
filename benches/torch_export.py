"""What torch's own exporter makes of a length that should stay free, and of a BatchNorm behind a ReLU.

    python -m benches.torch_export

prints the table of docs/comparison.md: a row for each way to say that the length is free, with the length that the file
has, the BatchNorms that are left in it, and how the call ended.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.export import Dim

#: The length of the example input, and so the one that a file may get by mistake.
LENGTH = 250
WAYS = {
    "Dim objects": {"dynamic_shapes": ({0: Dim("N"), 2: Dim("L")},)},
    "names": {"dynamic_shapes": ({0: "N", 2: "L"},)},
    "Dim.AUTO": {"dynamic_shapes": ({0: Dim.AUTO, 2: Dim.AUTO},)},
    "dynamo=False": {"dynamo": False, "input_names": ["x"], "dynamic_axes": {"x": {0: "N", 2: "L"}}},
}


def network(pool: bool = True) -> nn.Module:
    """The BatchNorm behind the ReLU, with a max-pool after it or without."""
    pools = [nn.MaxPool1d(2)] if pool else []
    return nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.BatchNorm1d(8), *pools, nn.Conv1d(8, 2, 1)).eval()


def shown(file: Path) -> str:
    """The length that the first input of a file has, and the BatchNorms in it."""
    graph = onnx.load(file).graph
    length = graph.input[0].type.tensor_type.shape.dim[2]
    left = sum(node.op_type == "BatchNormalization" for node in graph.node)
    return f"length {length.dim_param or length.dim_value}, {left} BatchNorms left"


def exported(way: str, pool: bool = True) -> str:
    """What an export in one of WAYS gives, and every warning that names the length."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        file = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(network(pool), (torch.randn(2, 4, LENGTH),), str(file), verbose=False, **WAYS[way])
        except torch.onnx.errors.OnnxExporterError as error:
            return next((line for line in str(error).splitlines() if "static shape" in line), type(error).__name__)
        said = [str(warning.message) for warning in caught if str(LENGTH) in str(warning.message)]
        return f"{shown(file)}, {len(said)} warnings name the length"


def main() -> None:
    """Print a line for each way, with the max-pool and without."""
    sys.stdout.write(f"torch {torch.__version__}\n")
    for pool in (True, False):
        for way in WAYS:
            sys.stdout.write(f"{'MaxPool1d' if pool else 'no pool':10} {way:14} {exported(way, pool)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
