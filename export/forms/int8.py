"""Write a folded graph in int8: QDQ nodes, one scale for each output channel, value ranges from inputs that are run.

The BatchNorms are folded first, and this makes int8 accurate: the range of a convolution's output is then the range
that the next operator reads. Weights use 7 of the 8 bits: on CPUs without VNNI a sum of 8-bit products would exceed 16
bits and saturate without an error.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from normfold.export.errors import ExportError

__all__ = ["named", "quantized"]

Arrays = Mapping[str, NDArray[Any]]
#: onnxruntime's levels of severity: its own default, and the one that hides all that is no exception.
_WARNING, _FATAL = 2, 4


def quantized(
    content: bytes,
    inputs: Sequence[Arrays],
    kept: Sequence[str] = (),
    only: Sequence[str] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> bytes:
    """Return the float32 graph ``content`` in int8; each value's range is that which it has on ``inputs``.

    kept names nodes that stay in float32; only names the nodes that do not (none: all others). ranges: the range of
    each value, low and high, in place of that on ``inputs``, of which one must still be there.

    Raises ExportError where onnxruntime's quantizer stops: a value is NaN or infinite there, or an operator is unknown.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(inputs if ranges is None else inputs[:1])

        def get_next(self) -> Arrays | None:
            return next(self.rest, None)

    endless = next((name for name, ends in (ranges or {}).items() if not np.isfinite(ends).all()), None)
    if endless is not None:
        raise _cannot(f"'{endless}' has no finite range")
    model = named(onnx.load_model_from_string(content))
    _part_grouped_biases(model)
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        target = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                model,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(kept),
                nodes_to_quantize=list(only),
                extra_options={"TensorQuantOverrides": _overrides(ranges or {})},
            )
        except Exception as error:  # AssertionError, ValueError, numpy's and onnxruntime's own
            reason = (str(error).strip().splitlines() or [""])[0]
            raise _cannot(f"{reason} ({type(error).__name__})") from error
        result = onnx.load(target)
    result.metadata_props.clear()
    result.metadata_props.extend(onnx.load_model_from_string(content).metadata_props)
    return bytes(result.SerializeToString(deterministic=True))


def _cannot(reason: str) -> ExportError:
    return ExportError(
        f"onnxruntime's quantizer cannot write this network in int8, so nothing was published: {reason}. It happens "
        "where a value inside the network is NaN or infinite on the samples that calibrate; else leave --quantize out, "
        "or use --dtype fp16"
    )


def _overrides(ranges: Mapping[str, tuple[float, float]]) -> dict[str, list[dict[str, np.float32]]]:
    return {name: [{"rmin": np.float32(low), "rmax": np.float32(high)}] for name, (low, high) in ranges.items()}


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model``, in place, with a name for each node that has none or that of another."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}_{node.output[0] if node.output else ''}"
        taken.add(node.name)
    return model


def _part_grouped_biases(model: onnx.ModelProto) -> None:
    """Write the bias of each grouped ConvTranspose as an Add behind it.

    Its weight is (C_in, C_out / groups, …), so a scale for each channel of that axis does not fit a bias of C_out
    entries, and the quantizer stops.
    """
    graph = model.graph
    held = {t.name: t for t in graph.initializer}
    for index, node in reversed(list(enumerate(graph.node))):
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type != "ConvTranspose" or groups == 1 or len(node.input) < 3 or node.input[2] not in held:
            continue
        axes = [1] * (len(held[node.input[1]].dims) - 2) if node.input[1] in held else [1]
        bias = numpy_helper.to_array(held[node.input[2]]).reshape(-1, *axes)
        output = node.output[0]
        parted, added = f"{output}_without_bias", f"{output}_bias"
        graph.initializer.append(numpy_helper.from_array(bias, added))
        name = node.input.pop(2)
        node.output[0] = parted
        if not any(name in other.input for other in graph.node):
            graph.initializer.remove(held.pop(name))
        graph.node.insert(index + 1, helper.make_node("Add", [parted, added], [output], name=added))


@contextmanager
def _without_advice() -> Iterator[None]:
    """Hide what the quantizer warns of, what it and its sessions log, and remove the handler that it adds."""
    import onnxruntime

    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        onnxruntime.set_default_logger_severity(_WARNING)
        logging.root.handlers[:] = handlers
