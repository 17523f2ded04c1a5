"""``export_network``: what ``normfold export`` does, for a network in memory."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.export.errors import ExportError, InputSpecError
from normfold.export.user_code import stopped

if TYPE_CHECKING:
    from torch import nn

    from normfold.export.inputs.samples import SampleFile
    from normfold.export.publishing.report import ExportReport

__all__ = ["export_network"]


def export_network(
    model: nn.Module,
    *,
    repository: str | Path,
    name: str,
    inputs: Any = (),
    weights: str | Path | None = None,
    weights_key: str = "",
    weights_sha256: str = "",
    labels: str | Path | Sequence[str] | None = None,
    samples: Any = (),
    test_samples: Any = (),
    allow_nonfinite: bool = False,
    standardize: Mapping[str, tuple[Any, Any]] | None = None,
    softmax: str | Mapping[str, int] = "",
    sigmoid: str | Sequence[str] = (),
    version: int | None = None,
    overwrite: bool = False,
    opset: int = 18,
    precision: str | None = None,
    even_if_slower: bool = False,
    form: str = "auto",
    remeasure: bool = False,
    threads: int = 1,
    fold_all: bool = False,
    time_at: Mapping[str, int] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> ExportReport:
    """Fold the BatchNorms of ``model``, export it to ONNX, prove it, publish it, and return the report.

    The network itself stays as it is: a copy in eval() on the CPU is exported. Print the report, or let a notebook show
    it.

        report = normfold.export_network(model, inputs="x=FP32[N,77,L]", repository="repository", name="surnames")

    Args:
        model: The network; ``weights`` are loaded into its copy.
        repository: The folder of the model repository.
        name: The model's name in it.
        inputs: "x=FP32[N,77,L]" or a list of such texts, as ``--input`` takes them. Or an example: an array, a list of
            arrays in the order of ``forward``, or a dict of arrays by name. An example fixes every size but the first,
            which is the batch, and is proved with like a sample.
        weights: A file of weights.
        weights_key: Which network, where the file of weights holds several: "ema".
        weights_sha256: The SHA-256 that the file of weights must have, in hexadecimal.
        labels: The names of the classes, or a file with one on each line.
        samples: Real inputs to prove with: files, arrays, or dicts of arrays by name. int8 is calibrated on them.
        test_samples: Real inputs that int8 is not calibrated on: what fewer bits cost is measured on them.
        allow_nonfinite: Samples may hold NaN and infinity.
        standardize: Input -> (mean, std), numbers or arrays with one value for each channel: (x - mean) / std is
            computed first, and folded too.
        softmax: The output that becomes probabilities of classes, or a dict from such outputs to the classes' axis.
        sigmoid: The outputs of which each number becomes a probability.
        version: The version to write; None: the next free one.
        overwrite: Replace the version if it exists.
        opset: The ONNX opset to write.
        precision: "fp16", "bf16" or "int8"; None: float32.
        even_if_slower: Publish fewer bits even if float32 is faster on this machine.
        form: The form to publish: unfolded, folded, lifted, widened, blocked; auto: the fastest on this machine.
        remeasure: Time the forms again, even if an earlier export has timed them.
        threads: The threads that share the work of a run while the forms are timed; by default a server has one.
        fold_all: Fold all that mathematics allows, also where onnxruntime becomes slower.
        time_at: Dimension -> the size to time the forms at, {"L": 5000}; otherwise a size that was found by trying, or
            that of the first sample.
        progress: Called with the name of each step.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``.
        ExportError: The message says what is wrong and what to do; nothing was published.
    """
    given = dict(locals())
    try:
        from torch import nn

        from normfold.export.notebook_arguments import require_types
        from normfold.export.pipeline import export_model
        from normfold.export.request import ExportRequest
        from normfold.export.sources.ends import Ends
    except ModuleNotFoundError as error:
        install = "pip install 'normfold[export,cpu]'"
        raise ImportError(f"exporting needs {error.name}, which is not installed: {install}", name=error.name) from None

    if not isinstance(model, nn.Module):
        made = " (give a network, not its class)" if inspect.isclass(model) else ""
        raise TypeError(f"export_network: got {model!r}, expected a torch.nn.Module{made}; for files: normfold export")
    require_types(given)
    if (weights_key or weights_sha256) and weights is None:
        raise ExportError(f"weights_{'key' if weights_key else 'sha256'} is about a file of weights: give weights, too")
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)] or ["x"]
    texts, examples = _described(inputs, names)
    unnamed = "" if texts else names[0]
    real, tests = (
        [_sample(one, f"{kind} {number}", unnamed) for number, one in enumerate(_several(several), 1)]
        for kind, several in (("sample", samples), ("test sample", test_samples))
    )
    request = ExportRequest(
        source=model,
        repository=Path(repository),
        name=name,
        inputs=texts,
        weights=None if weights is None else Path(weights),
        weights_key=weights_key,
        weights_sha256=weights_sha256,
        labels=Path(labels) if isinstance(labels, (str, os.PathLike)) else labels,
        samples=[*examples, *real],
        test_samples=tests,
        allow_nonfinite=allow_nonfinite,
        ends=Ends(
            dict(standardize or {}),
            dict(softmax) if isinstance(softmax, Mapping) else {softmax: None} if softmax else {},
            (sigmoid,) if sigmoid and isinstance(sigmoid, str) else tuple(sigmoid),
        ),
        version=None if version is None else int(version),
        overwrite=overwrite,
        opset=int(opset),
        precision=precision,
        even_if_slower=even_if_slower,
        variant=form,
        remeasure=remeasure,
        threads=int(threads),
        fold_all=fold_all,
        time_at={name: int(size) for name, size in (time_at or {}).items()},
    )
    current = "starting"

    def step(name: str) -> None:
        nonlocal current
        current = name
        progress(name)

    try:
        return export_model(request, step)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{stopped(error, current)} (the __cause__ of this error has Python's traceback)") from error


def _described(inputs: Any, names: Sequence[str]) -> tuple[tuple[str, ...], list[SampleFile]]:
    """Return ``inputs`` as texts, or as an example whose arrays have the names of the parameters of ``forward``."""
    if isinstance(inputs, str):
        return (inputs,), []
    if isinstance(inputs, Sequence) and all(isinstance(one, str) for one in inputs):
        return tuple(inputs), []
    if isinstance(inputs, Mapping):
        return (), [_arrays(inputs, "the example")]
    arrays = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if len(arrays) > len(names):
        raise InputSpecError(
            f"inputs: {len(arrays)} arrays for forward({', '.join(names)}); give a dict of arrays by name"
        )
    return (), [_arrays(dict(zip(names, arrays, strict=False)), "the example")]


def _several(samples: Any) -> list[Any]:
    return list(samples) if isinstance(samples, (list, tuple)) else [samples]


def _sample(given: Any, name: str, unnamed: str) -> Path | SampleFile:
    """Return one sample: the path of a file, or arrays by input name; ``unnamed`` is the name of an array without."""
    if isinstance(given, (str, Path)):
        return Path(given)
    return _arrays(given if isinstance(given, Mapping) else {unnamed: given}, name)


def _arrays(given: Mapping[Any, Any], name: str) -> SampleFile:
    from normfold.export.inputs.samples import SampleFile
    from normfold.export.notebook_arguments import as_array

    return SampleFile(name, {str(key): as_array(value, name) for key, value in given.items()})
