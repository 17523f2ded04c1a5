"""The parts of an ONNX file that decide whether it is safe to load; `onnx_file.proto` says which."""

from normfold.protos.pool import fill

fill(__name__, "onnx_file.proto")
