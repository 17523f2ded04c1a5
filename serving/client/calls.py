"""The part that both clients share: request messages from arrays, and arrays from responses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from normfold.protos.datatypes import by_name
from normfold.serving.client.arguments import checked_model, checked_outputs, checked_request_id, checked_version
from normfold.serving.client.errors import ClientError
from normfold.serving.client.inputs import Array, Inputs, by_input_name
from normfold.serving.client.metadata import ModelMetadata
from normfold.serving.errors import ServingError, Status
from normfold.serving.wire.tensors import split_elements, to_raw

if TYPE_CHECKING:
    from normfold.protos import grpc_service as pb

SERVICE = "/inference.GRPCInferenceService/"


def method_path(method: str) -> str:
    """The path of a method of the protocol by its name; a path is one already. Raises ValueError."""
    if not isinstance(method, str) or not method.isascii():
        raise ValueError(f"method {method!r} is not the name of a method, such as 'ServerLive', nor a path")
    return method if method.startswith("/") else SERVICE + method


DEFAULT_ADDRESS = "127.0.0.1:8001"

#: A call without an answer after this many seconds is an error, unless the caller gives another time.
DEFAULT_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class LabelledClass:
    """One class in the answer of a classification."""

    score: float
    index: int
    #: Empty if the model has no labels.
    label: str


class Answer(dict[str, Array]):
    """The outputs of an inference by name.

    ``model`` and ``version`` are those that the server says it answered with; "" where it does not say.
    """

    __slots__ = ("model", "version")

    def __init__(self, model: str = "", version: str = "") -> None:
        self.model, self.version = model, version

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and copy: the items come after the model and the version."""
        return type(self), (self.model, self.version), None, None, iter(self.items())


def infer_request(
    model: str,
    inputs: Inputs,
    outputs: Iterable[str] | None,
    version: str | int | None = "",
    request_id: str = "",
    top: int = 0,
    metadata: ModelMetadata | None = None,
) -> pb.ModelInferRequest:
    """The message that asks ``model`` for an answer to ``inputs``, which are arrays by input name.

    ``top``: ask for this many best classes of each output; 0: for the numbers. ``metadata`` is that of the model where
    ``needs_metadata(inputs)``. Arrays are sent little-endian whatever their byte order; ``str`` elements are sent as
    UTF-8. Raises ValueError, which says what to pass instead.
    """
    from normfold.protos import grpc_service as pb  # here, because most requests do without protobuf (plans.py)

    request = pb.ModelInferRequest(
        model_name=checked_model(model), model_version=checked_version(version), id=checked_request_id(request_id)
    )
    for name, (array, datatype) in by_input_name(inputs, metadata).items():
        request.inputs.add(name=name, datatype=datatype.name, shape=array.shape)
        request.raw_input_contents.append(to_raw(array, datatype))
    for name in checked_outputs(outputs):
        output = request.outputs.add(name=name)
        if top:
            output.parameters["classification"].int64_param = top
    return request


def arrays(response: pb.ModelInferResponse) -> Answer:
    """The outputs of a response by name; BYTES as ``bytes`` objects, BF16 as its bits in uint16.

    Raises ClientError where an output cannot be read, or where contents do not belong to one output each.
    """
    found = Answer(response.model_name, response.model_version)
    names = {output.name for output in response.outputs}
    if len(names) < len(response.outputs) or len(response.raw_output_contents) > len(response.outputs):
        raise ClientError(
            Status.INTERNAL,
            f"the server's answer has {len(response.outputs)} outputs of {len(names)} names, and "
            f"{len(response.raw_output_contents)} raw contents",
        )
    for index, output in enumerate(response.outputs):
        try:
            found[output.name] = _output(response, index)
        except (ValueError, OverflowError, ServingError) as error:
            shown = f"{output.name!r} {output.datatype}{list(output.shape)}"
            raise ClientError(Status.INTERNAL, f"the server's output {shown} cannot be read: {error}") from None
    return found


def _output(response: pb.ModelInferResponse, index: int) -> Array:
    output = response.outputs[index]
    try:
        datatype, shape = by_name(output.datatype), tuple(output.shape)
    except KeyError:
        raise ValueError("its datatype is none of the protocol's") from None
    if any(size < 0 for size in shape):
        raise ValueError("it has a negative size")
    if index >= len(response.raw_output_contents):
        if not datatype.contents_field:
            raise ValueError("it has no raw contents, and its datatype has no others")
        numbers = getattr(output.contents, datatype.contents_field)
        values = np.array(numbers, datatype.dtype)
        if values.dtype.kind in "iu" and values.tolist() != list(numbers):  # NumPy 1 takes 300 for 44
            raise OverflowError("a number is outside of its datatype")
    elif datatype.name == "BYTES":
        elements = split_elements(response.raw_output_contents[index], math.prod(shape), f"output {output.name!r}")
        values = np.empty(len(elements), object)
        values[:] = elements
    else:
        values = np.frombuffer(response.raw_output_contents[index], datatype.dtype)
    return values.reshape(shape)


def first_output(metadata: ModelMetadata) -> str:
    """The name of the model's first output. Raises ClientError where the server names none."""
    if not metadata.outputs:
        raise ClientError(Status.INTERNAL, f"the server names no output of model {metadata.name!r}; give its name")
    return metadata.outputs[0].name


def labelled(response: pb.ModelInferResponse, output: str) -> list[list[LabelledClass]]:
    """The classes in an answer of the classification extension: a list for each row, the best class first.

    Raises ClientError where the answer holds numbers, from a server without this extension, or no such output.
    """
    elements = arrays(response).get(output)
    if elements is None:
        raise ClientError(Status.INTERNAL, f"the server's answer has no output {output!r}")
    if elements.dtype != object:
        raise ClientError(
            Status.UNIMPLEMENTED,
            "the server answers with the scores themselves: it does not classify; call infer, and argmax on its answer",
        )
    *before, classes = np.atleast_1d(elements).shape
    return [[_labelled(element) for element in row] for row in elements.reshape(math.prod(before), classes)]


def _labelled(element: bytes) -> LabelledClass:
    try:
        score, index, *label = element.decode(errors="replace").split(":", 2)
        return LabelledClass(float(score), int(index), label[0] if label else "")
    except ValueError:
        raise ClientError(
            Status.INTERNAL, f"the server's answer holds {element[:80]!r}, which is no class: score:index:label"
        ) from None
