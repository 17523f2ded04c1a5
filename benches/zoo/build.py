"""Write each network of the zoo as ONNX, not folded, and the answers of PyTorch in float64 beside it.

    python -m benches.zoo.build OUT [NAME ...]

writes for each network named, or without names for each network that is not in OUT yet,

    OUT/NAME/unfolded.onnx        torch.export's graph with every BatchNormalization in it
    OUT/NAME/unfolded_legacy.onnx the same from the TorchScript exporter
    OUT/NAME/torch_default.onnx   what torch.onnx.export(dynamo=True) gives without further options
    OUT/NAME/weights.pt           the module's state_dict, which the files were made from
    OUT/NAME/reference.npz        x0, y0, x1, y1, ...: inputs and the float64 model's outputs, several for each size
    OUT/NAME/facts.json           number of BatchNorms, dynamic dimensions, the float32 error of each file

and OUT/INDEX.json, the facts of all.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import multiprocessing
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benches.zoo.network import Network, without_kernels
from benches.zoo.networks import NETWORKS, named

from normfold.whole_file import write_whole

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

#: Number of batches that the BatchNorm statistics are computed from.
CALIBRATION = 4
#: Number of inputs that each size is checked on: with one alone the largest error is a matter of luck.
DRAWS = 3
OPSET = 18
WEIGHTS = "weights.pt"


def make(network: Network) -> nn.Module:
    """Return the network in eval mode, with trained weights or with drawn ones."""
    import torch
    from benches.zoo.randomise import randomise

    without_kernels()
    torch.manual_seed(0)
    module = network.build().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    if not network.trained:
        batches = [draw(network, 0, seed, batch=8) for seed in range(CALIBRATION)]
        randomise(module, batches)
    return module


def kept(network: Network, folder: Path) -> nn.Module:
    """Return the network with the weights that its files in ``folder`` were made from. Raises ValueError.

    Drawing them again is not enough: a package that draws numbers while it is imported moves all later ones.
    """
    import torch

    without_kernels()
    module = network.build().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
    with np.load(folder / "reference.npz") as reference, torch.no_grad():
        found = copy.deepcopy(module).double()(torch.from_numpy(reference["x0"]).double()).numpy()
        if not np.allclose(found, reference["y0"], rtol=1e-9, atol=1e-9 * np.abs(reference["y0"]).max()):
            raise ValueError(f"{network.name} is not the network that {folder} was made from: build it again")
    return module


def draw(network: Network, size: int, seed: int = 0, batch: int | None = None) -> Tensor:
    """Return an input of the network's ``size``-th size, drawn from a normal distribution with a seed."""
    import torch

    sizes = dict(network.sizes[size])
    if batch is not None and "N" in sizes:
        sizes["N"] = batch
    generator = torch.Generator().manual_seed(1000 * size + seed)
    return torch.randn(network.dims(sizes), generator=generator)


def write(network: Network, folder: Path) -> dict[str, Any]:
    """Write the files of one network into ``folder`` and return its facts."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    folder.mkdir(parents=True, exist_ok=True)
    module = make(network)
    torch.save(module.state_dict(), folder / WEIGHTS)
    inputs = [draw(network, size, seed) for seed in range(99, 99 + DRAWS) for size in range(len(network.sizes))]
    double = copy.deepcopy(module).double()
    with torch.no_grad():
        outputs = [double(x.double()).numpy() for x in inputs]
    np.savez(
        folder / "reference.npz",
        **{f"x{i}": x.numpy() for i, x in enumerate(inputs)},
        **{f"y{i}": y for i, y in enumerate(outputs)},
    )
    norms = [name for name, part in module.named_modules() if isinstance(part, _BatchNorm)]
    facts: dict[str, Any] = {"package": network.package, "batchnorms": len(norms), "files": {}}
    failed: dict[str, str] = {}
    for names, export in ((("unfolded", "torch_default"), dynamo), (("unfolded_legacy",), legacy)):
        for name in names:
            (folder / f"{name}.onnx").unlink(missing_ok=True)
        try:
            with contextlib.redirect_stdout(None):  # the TorchScript exporter prints a graph that it cannot export
                export(network, module, inputs[0], folder)
        except Exception as error:
            failed |= dict.fromkeys(names, f"{type(error).__name__}: {error}"[:300])
    for name in ("unfolded", "unfolded_legacy", "torch_default"):
        try:
            facts["files"][name] = describe(folder / f"{name}.onnx", inputs, outputs)
        except Exception as error:
            facts["files"][name] = {"failed": failed.get(name) or f"{type(error).__name__}: {error}"[:300]}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))
    return facts


def dynamo(network: Network, module: nn.Module, x: Tensor, folder: Path) -> None:
    """Export through torch.export, and write the graph before and after torch's default optimisation."""
    import torch
    from torch.export import Dim

    program = torch.onnx.export(
        module,
        (x,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["x"],
        output_names=["y"],
        # Not by name: a named dimension must be free, but some operators, such as max_pool1d, bound or fix theirs.
        dynamic_shapes=(dict.fromkeys(network.dynamic, Dim.AUTO),),
        optimize=False,
        verbose=False,
    )
    assert program is not None
    name_dimensions(program.model.graph, network.dynamic)
    program.save(str(folder / "unfolded.onnx"))
    program.optimize()
    program.save(str(folder / "torch_default.onnx"))


def name_dimensions(graph: ir.Graph, names: Mapping[int, str]) -> None:
    """Replace torch.export's symbols, such as s77, by the network's own names, in every shape."""
    import onnx_ir as ir

    shape = graph.inputs[0].shape
    assert shape is not None
    symbols = {str(shape[axis]): name for axis, name in names.items()}
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                value.shape[axis] = re.sub(r"\w+", lambda found: symbols.get(found[0], found[0]), dim.value)


def legacy(network: Network, module: nn.Module, x: Tensor, folder: Path) -> None:
    """Export through TorchScript; PRESERVE keeps the BatchNorms of the module, which is in eval mode."""
    import torch

    torch.onnx.export(
        module,
        (x,),
        str(folder / "unfolded_legacy.onnx"),
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": network.dynamic},
    )


def describe(path: Path, inputs: list[Tensor], outputs: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Return the facts of a file, with its error on each input; None for an input whose size the file does not take."""
    import onnx
    from benches.folding.measure import relative_error, session

    model = onnx.load(path)
    kinds = [node.op_type for node in model.graph.node]
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    facts: dict[str, Any] = {"nodes": len(kinds), "batchnorms": kinds.count("BatchNormalization"), "input": shape}
    run = session(path)
    errors: list[float | None] = []
    for x, y in zip(inputs, outputs, strict=True):
        try:
            errors.append(relative_error(run.run(None, {run.get_inputs()[0].name: x.numpy()})[0], y))
        except Exception:
            if not errors:
                raise
            errors.append(None)
    return facts | {"errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder to write into")
    parser.add_argument("names", nargs="*", help="networks; default: those that are not in OUT")
    options = parser.parse_args()
    missing = [network.name for network in NETWORKS if not is_built(options.out / network.name)]
    build([named(name) for name in options.names or missing], options.out)


def is_built(folder: Path) -> bool:
    """Whether a network's files are in ``folder``."""
    return (folder / "facts.json").is_file() and (folder / WEIGHTS).is_file()


def build(networks: Sequence[Network], out: Path) -> None:
    """Write the files of each network, print a line for it, and update INDEX.json.

    Each is built in a process of its own: torch's exporters end in a segmentation fault for some networks, and what one
    package does while it is imported does not reach the next.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # the exporters warn about much
    fork = multiprocessing.get_context("fork")
    for network in networks:
        (out / network.name / "facts.json").unlink(missing_ok=True)
        process = fork.Process(target=build_one, args=(network, out / network.name))
        process.start()
        process.join()
        if process.exitcode:
            print(f"{network.name}: not built: the process ended with {process.exitcode}", flush=True)
        elif is_built(out / network.name):
            write_index(out)


def build_one(network: Network, folder: Path) -> None:
    """Write the files of one network and print a line for it."""
    try:
        print(network.name, line(write(network, folder)), flush=True)
    except Exception as error:
        print(f"{network.name}: not built: {type(error).__name__}: {error}", flush=True)


def line(facts: dict[str, Any]) -> str:
    """Return one line about one network, for people."""
    parts = [f"{facts['batchnorms']} BatchNorms"]
    for name, file in facts["files"].items():
        if "failed" in file:
            parts.append(f"{name} FAILED {file['failed'][:100]}")
        else:
            errors = " ".join("-" if error is None else f"{error:.1e}" for error in file["errors"])
            parts.append(f"{name} {file['batchnorms']}/{file['nodes']} {file['input']} {errors}")
    return "; ".join(parts)


def write_index(out: Path) -> None:
    """Write the facts of all networks that were built so far to INDEX.json."""
    facts = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("*/facts.json"))}
    write_whole(out / "INDEX.json", json.dumps(facts, indent=1).encode())


if __name__ == "__main__":
    main()
