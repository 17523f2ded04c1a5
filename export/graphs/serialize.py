"""Write an ONNX graph as bytes: one self-contained file, the same bytes for the same graph."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from normfold.export.errors import ExportError

__all__ = ["MAX_BYTES", "to_bytes"]

#: The limit of protobuf for one message.
MAX_BYTES = (1 << 31) - 1


def to_bytes(model: ir.Model) -> bytes:
    """Return ``model`` as the bytes of an ``.onnx`` file, checked by ``onnx.checker``.

    Raises ExportError where the weights do not fit one file of 2 GB; external data is never written.
    """
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if weights > MAX_BYTES:
        raise ExportError(
            f"the weights take {weights / 2**30:.1f} GiB; one ONNX file holds 2 GiB, and weights beside the file are "
            "neither written nor read here, because only a file that is whole can be checked"
        )
    proto = ir.to_proto(model)
    content: bytes = proto.SerializeToString(deterministic=True)
    if len(content) > MAX_BYTES:
        raise ExportError(f"the graph takes {len(content) / 2**30:.1f} GiB; one ONNX file holds 2 GiB")
    try:
        onnx.checker.check_model(content)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return content
