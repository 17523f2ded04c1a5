"""One table: the names of the protocol's datatypes in NumPy, ONNX, onnxruntime and ``config.pbtxt``.

Sources: the Open Inference Protocol's list of tensor data types, ``TensorProto.DataType`` of ONNX (the numbers are part
of the format), Triton's ``DataType`` in `model_config.proto`.

>>> by_name("FP32").dtype, by_onnx(1).name, by_onnxruntime("tensor(float)").config_name
(dtype('float32'), 'FP32', 'TYPE_FP32')
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Datatype:
    """A type of elements, with all its names."""

    #: The name in the protocol: "FP32".
    name: str
    #: The dtype in memory, little-endian. BYTES is ``object``, each element ``bytes``; BF16 is its bits as ``uint16``.
    dtype: np.dtype[Any]
    #: ``TensorProto.DataType`` of ONNX.
    onnx: int
    #: The number and the name in ``DataType`` of `model_config.proto`.
    config: int
    config_name: str
    #: How onnxruntime prints it: "tensor(float)".
    onnxruntime: str
    #: The field of ``InferTensorContents``; empty if the type can only be sent as raw bytes.
    contents_field: str

    @property
    def itemsize(self) -> int:
        """Bytes of one element in raw contents; 0 for BYTES, where each element brings its own length."""
        return 0 if self.dtype == object else self.dtype.itemsize


def _row(name: str, dtype: str, onnx: int, config: int, config_name: str, ort: str, contents_field: str) -> Datatype:
    return Datatype(name, np.dtype(dtype), onnx, config, f"TYPE_{config_name}", f"tensor({ort})", contents_field)


DATATYPES: tuple[Datatype, ...] = (
    _row("BOOL", "?", 9, 1, "BOOL", "bool", "bool_contents"),
    _row("UINT8", "u1", 2, 2, "UINT8", "uint8", "uint_contents"),
    _row("UINT16", "<u2", 4, 3, "UINT16", "uint16", "uint_contents"),
    _row("UINT32", "<u4", 12, 4, "UINT32", "uint32", "uint_contents"),
    _row("UINT64", "<u8", 13, 5, "UINT64", "uint64", "uint64_contents"),
    _row("INT8", "i1", 3, 6, "INT8", "int8", "int_contents"),
    _row("INT16", "<i2", 5, 7, "INT16", "int16", "int_contents"),
    _row("INT32", "<i4", 6, 8, "INT32", "int32", "int_contents"),
    _row("INT64", "<i8", 7, 9, "INT64", "int64", "int64_contents"),
    _row("FP16", "<f2", 10, 10, "FP16", "float16", ""),
    _row("FP32", "<f4", 1, 11, "FP32", "float", "fp32_contents"),
    _row("FP64", "<f8", 11, 12, "FP64", "double", "fp64_contents"),
    _row("BYTES", "O", 8, 13, "STRING", "string", "bytes_contents"),
    _row("BF16", "<u2", 16, 14, "BF16", "bfloat16", ""),
)

_BY_NAME = {d.name: d for d in DATATYPES}
_BY_ONNX = {d.onnx: d for d in DATATYPES}
_BY_CONFIG = {d.config: d for d in DATATYPES}
_BY_ONNXRUNTIME = {d.onnxruntime: d for d in DATATYPES}
_BY_DTYPE = {d.dtype: d for d in DATATYPES if d.name != "BF16"}


def by_name(name: str) -> Datatype:
    """Return the datatype with this name in the protocol. Raises KeyError."""
    return _BY_NAME[name]


def by_onnx(number: int) -> Datatype:
    """Return the datatype of this ``TensorProto.DataType``. Raises KeyError if the protocol has no name for it."""
    return _BY_ONNX[number]


def by_config(number: int) -> Datatype:
    """Return the datatype of this ``DataType`` of `model_config.proto`. Raises KeyError."""
    return _BY_CONFIG[number]


def by_onnxruntime(text: str) -> Datatype:
    """Return the datatype that onnxruntime prints as ``text``. Raises KeyError if the protocol has no name for it."""
    return _BY_ONNXRUNTIME[text]


def by_dtype(dtype: np.dtype[Any] | type) -> Datatype:
    """Return the datatype of an array of ``dtype``, in any byte order; text and bytes are BYTES. Raises KeyError."""
    dtype = np.dtype(dtype)
    if (known := _BY_DTYPE.get(dtype)) is not None:  # the name of a dtype, below, takes NumPy far longer
        return known
    if dtype.kind in "SUT":  # T: NumPy's StringDType
        return _BY_NAME["BYTES"]
    if dtype.name == "bfloat16":  # the type of the package ml_dtypes
        return _BY_NAME["BF16"]
    return _BY_DTYPE[dtype.newbyteorder("<")]
