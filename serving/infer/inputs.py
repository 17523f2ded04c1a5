"""The inputs of a request, checked against a model's contract, as arrays.

The checks are made in the same order as in Triton, so that a request with several faults gets the same status.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from numpy.typing import NDArray

from normfold.counting import counted
from normfold.protos import grpc_service as pb
from normfold.protos.datatypes import by_name
from normfold.serving.catalog.contract import Contract, TensorSpec, reshaped
from normfold.serving.errors import InvalidRequest, ServingError
from normfold.serving.wire.lifted import Lifted
from normfold.serving.wire.strings import ELEMENT_BYTES, OWN_TIMES
from normfold.serving.wire.tensors import LENGTH_BYTES, Contents, to_array
from normfold.serving.wire.typed import Typed, read_typed
from normfold.serving.wording import Place, RequestPrefix, dims, listed, near, quoted

Array = NDArray[Any]
InputTensor = pb.ModelInferRequest.InferInputTensor

#: The largest number of names of inputs that a message lists.
NAMES_SHOWN = 16

#: The parameters of a tensor in shared memory, and the kind of value of each.
_REGION_KINDS = {
    "shared_memory_region": "string_param",
    "shared_memory_byte_size": "int64_param",
    "shared_memory_offset": "int64_param",
}

#: The largest number of dimensions that a NumPy array can have.
MAX_RANK = 64

BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero."
)


class Regions(Protocol):
    """Shared memory that requests may name."""

    def check(self, region: str, offset: int, size: int) -> object:
        """Raise NotFound or InvalidRequest unless ``size`` bytes from ``offset`` on lie in a registered region."""
        ...

    def read(self, region: str, offset: int, size: int) -> bytes:
        """``size`` bytes of a registered region from ``offset`` on."""
        ...


#: The data of an input: from the message, or a function that reads them from shared memory.
Source = Contents | Callable[[], bytes]


def read_inputs(
    request: pb.ModelInferRequest, contents: Mapping[str, Source], name: str, contract: Contract
) -> tuple[dict[str, Array], int]:
    """The input arrays by name, as the model file takes them, and the number of rows (1 without a batch dimension).

    ``contents`` comes from ``gather``. Raises InvalidRequest.
    """
    _check_names(request, name, contract)
    _check_batch(request, name, contract)
    feeds, prefix = {}, RequestPrefix(request.id)
    for tensor in request.inputs:
        spec = contract.inputs[tensor.name]
        shape = _check_tensor(request, tensor, spec, name, contract.max_batch_size)
        place = Place(tensor.name, name)
        source = contents[tensor.name]
        data = source if isinstance(source, (bytes, memoryview, Typed)) else source()
        array = to_array(data, shape, spec.datatype, place, prefix)
        feeds[tensor.name] = array if spec.reshape is None else array.reshape(reshaped(shape, spec.shape, spec.reshape))
    if contract.proved is not None:
        shapes = {input_name: array.shape for input_name, array in feeds.items()}
        if refusal := contract.proved.refusal(shapes, batched=contract.max_batch_size > 0):
            raise InvalidRequest(f"{prefix}{refusal}")
    return feeds, request.inputs[0].shape[0] if contract.max_batch_size and request.inputs else 1


def gather(request: pb.ModelInferRequest, name: str, regions: Regions, lifted: Lifted) -> dict[str, Source]:
    """The data of every input by name: raw or typed contents, or what reads them from shared memory.

    ``lifted`` was taken out of the request.

    Shared memory is not read here: it may have gigabytes, and the request may be refused for something else.

    Raises InvalidRequest or NotFound.
    """
    raw = request.raw_input_contents
    contents: dict[str, Source] = {}
    used = 0
    for at, tensor in enumerate(request.inputs):
        if tensor.name in contents:
            raise InvalidRequest(f"{RequestPrefix(request.id)}input {quoted(tensor.name)} already exists in request")
        tail = Place(tensor.name, name)
        typed = tensor.HasField("contents")
        region = region_of(tensor.parameters, tensor.name) if tensor.parameters else None
        if region is not None:
            if typed:
                raise InvalidRequest(f"contents field must not be specified when using shared memory for {tail}")
            regions.check(*region)
            contents[tensor.name] = partial(regions.read, *region)
        elif raw and typed:
            raise InvalidRequest(f"contents field must not be specified when using raw_input_contents for {tail}")
        elif typed:
            contents[tensor.name] = read_typed(tensor.contents, tensor.datatype, tail, lifted.typed.get(at))
        elif used < len(raw):
            contents[tensor.name] = lifted.raw[used] if used in lifted.raw else raw[used]
            used += 1
        else:
            raise InvalidRequest(f"unable to find data for input tensor {tail} in request.")
    if used < len(raw):
        raise InvalidRequest(
            f"{RequestPrefix(request.id)}raw_input_contents has {len(raw)} entries, but only {used} of the "
            f"{len(request.inputs)} inputs for model {quoted(name)} take one"
        )
    return contents


def unread_bytes(request: pb.ModelInferRequest, contract: Contract, lifted: Lifted) -> tuple[int, int]:
    """The memory that typed numbers and strings of a large request take beside the request once they are read.

    Two numbers of bytes: while the request waits for its run, and at most during its run.
    """
    if not (lifted.raw or lifted.typed):
        return 0, 0
    count, size = lifted.unread_strings
    used = 0
    for tensor in request.inputs:
        if tensor.HasField("contents") or "shared_memory_region" in tensor.parameters:
            continue
        if tensor.datatype == "BYTES" and (raw := lifted.raw.get(used)) is not None:
            elements = _elements(tensor, len(raw))
            count, size = count + elements, size + len(raw) - elements * LENGTH_BYTES
        used += 1
    waiting, most = _string_bytes(contract, count, size)
    return lifted.unread_bytes + waiting, lifted.unread_bytes + most


def _string_bytes(contract: Contract, count: int, size: int) -> tuple[int, int]:
    """The memory of ``count`` strings of ``size`` bytes; twice that where the model answers with strings, too.

    Two numbers of bytes: while the strings wait for their run, and at most during their run.
    """
    times = 1 + any(spec.datatype.name == "BYTES" for spec in contract.outputs.values())
    return (count * ELEMENT_BYTES + size) * times, (count * ELEMENT_BYTES + size * OWN_TIMES) * times


def _elements(tensor: InputTensor, size: int) -> int:
    """How many strings of ``tensor`` are read at most from ``size`` bytes: no more than its shape says."""
    shape = tensor.shape
    return min(max(0, math.prod(shape)), size // LENGTH_BYTES) if len(shape) <= MAX_RANK else 0


def shared_bytes(request: pb.ModelInferRequest, contract: Contract, regions: Regions) -> tuple[int, int, int]:
    """The memory that ``request`` takes for the inputs that it names in shared memory.

    Three numbers of bytes: while the request waits for its run, at most during its run, and the strings among the
    inputs. All are 0 if the request is refused before its inputs are read.
    """
    total = most = strings = 0
    try:
        for tensor in request.inputs:
            if not tensor.parameters or tensor.name not in contract.inputs:
                continue
            if (region := region_of(tensor.parameters, tensor.name)) is not None:
                regions.check(*region)
                total, most = total + region[2], most + region[2]
                if contract.inputs[tensor.name].datatype.name == "BYTES":
                    elements = _elements(tensor, region[2])
                    waiting, running = _string_bytes(contract, elements, region[2] - elements * LENGTH_BYTES)
                    total, most, strings = total + waiting, most + running, strings + region[2]
    except ServingError:
        return 0, 0, 0
    return total, most, strings


def region_of(parameters: Mapping[str, pb.InferParameter], tensor: str) -> tuple[str, int, int] | None:
    """The region, offset and size in bytes of the shared memory that the parameters of ``tensor`` name, or None.

    Raises InvalidRequest.
    """
    if "shared_memory_region" not in parameters:
        for key in ("shared_memory_byte_size", "shared_memory_offset"):
            if key in parameters:
                raise InvalidRequest(
                    f"'{key}' can not be specified without 'shared_memory_region' parameter for tensor {quoted(tensor)}"
                )
        return None
    if "shared_memory_byte_size" not in parameters:
        raise InvalidRequest(
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor "
            f"{quoted(tensor)}"
        )
    for key, kind in _REGION_KINDS.items():
        if key in parameters and parameters[key].WhichOneof("parameter_choice") != kind:
            raise InvalidRequest(
                f"invalid value type for '{key}' parameter for tensor {quoted(tensor)}, expected {kind}."
            )
    offset = parameters["shared_memory_offset"].int64_param if "shared_memory_offset" in parameters else 0
    return parameters["shared_memory_region"].string_param, offset, parameters["shared_memory_byte_size"].int64_param


def _check_names(request: pb.ModelInferRequest, name: str, contract: Contract) -> None:
    sent = [tensor.name for tensor in request.inputs]
    missing = sorted(contract.required.difference(sent))
    if not len(contract.required) <= len(sent) <= len(contract.inputs):
        required, total = len(contract.required), len(contract.inputs)
        wanted = f"{total} inputs" if required == total else f"number of inputs between {required} and {total}"
        more = f", but missing required input(s) {listed(missing)}" if missing else ""
        takes = ", ".join(str(spec) for spec in contract.inputs.values())
        raise InvalidRequest(
            f"{RequestPrefix(request.id)}expected {wanted} but got {len(sent)} inputs for model {quoted(name)}. "
            f"Got input(s) {listed(sent[:NAMES_SHOWN])}{more}. Please provide all required input(s): {takes}."
        )
    for sent_name in sent:
        if sent_name not in contract.inputs:
            takes = ", ".join(str(spec) for spec in contract.inputs.values())
            raise InvalidRequest(
                f"unexpected inference input {quoted(sent_name)} for model {quoted(name)}"
                f"{near(sent_name, contract.inputs)}; the model takes {takes}"
            )
    if missing:
        raise InvalidRequest(
            f"{RequestPrefix(request.id)}expected {len(contract.required)} inputs but got {len(sent)} inputs for model "
            f"{quoted(name)}. Got input(s) {listed(sent)}, but missing required input(s) {listed(missing)}. "
            "Please provide all required input(s)."
        )


def _check_batch(request: pb.ModelInferRequest, name: str, contract: Contract) -> None:
    if not contract.max_batch_size:
        return
    prefix, rows = RequestPrefix(request.id), None
    for tensor in request.inputs:
        if not tensor.shape:
            raise InvalidRequest(
                f"{prefix}input {quoted(tensor.name)} has no shape but model requires batch dimension for "
                f"{quoted(name)}"
            )
        if rows is not None and tensor.shape[0] != rows:
            raise InvalidRequest(
                f"{prefix}input {quoted(tensor.name)} batch size does not match other inputs for {quoted(name)}: "
                f"{tensor.shape[0]} and {rows} rows"
            )
        rows = tensor.shape[0]
    if rows is not None and rows > contract.max_batch_size:
        raise InvalidRequest(
            f"{prefix}inference request batch-size must be <= {contract.max_batch_size} for {quoted(name)}; "
            f"got {rows}, send it in parts"
        )


def _check_tensor(
    request: pb.ModelInferRequest, tensor: InputTensor, spec: TensorSpec, name: str, max_batch_size: int
) -> tuple[int, ...]:
    """The shape of one input. Raises InvalidRequest unless its datatype and all its sizes are those of ``spec``."""
    prefix, place = RequestPrefix(request.id), Place(tensor.name, name)
    if tensor.datatype != spec.datatype.name:
        raise InvalidRequest(
            f"{prefix}inference input {quoted(tensor.name)} data-type is {quoted(tensor.datatype)}"
            f"{_unknown(tensor.datatype)}, but model {quoted(name)} expects '{spec.datatype.name}'"
        )
    shape = tuple(tensor.shape)
    if len(shape) <= MAX_RANK and any(size < 0 for size in shape):
        raise InvalidRequest(f"{prefix}All input dimensions should be specified for input {place}, got {dims(shape)}")
    if len(shape) > MAX_RANK or not spec.fits(shape):
        raise InvalidRequest(
            f"{prefix}unexpected shape for input {place}. Expected {dims(spec.shape)}, got {dims(shape)}. "
            f"{_difference(shape, spec.shape)}{' ' + BATCH_NOTE if max_batch_size else ''}"
        )
    return shape


def _difference(shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if len(shape) != len(expected):
        return f"It has {counted(len(shape), 'dimension')}, the model takes {len(expected)}."
    for axis, (size, wanted) in enumerate(zip(shape, expected, strict=True)):
        if wanted not in (-1, size):
            return f"Dimension {axis} is {size}, the model takes {wanted}."
    return ""


def _unknown(datatype: str) -> str:
    """A remark on a datatype that the protocol does not have; "" for one that it has."""
    try:
        by_name(datatype)
    except KeyError:
        return ", which the protocol does not have" + (": names are in capitals" if datatype.islower() else "")
    return ""
