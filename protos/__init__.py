"""The wire protocol: our own `.proto` files, and the message classes that are made from them at import.

- ``normfold.protos.grpc_service``: the Open Inference Protocol with Triton's extensions.
- ``normfold.protos.model_config``: ``ModelConfig``, the content of ``config.pbtxt``.
- ``normfold.protos.health``, ``reflection_v1``, ``reflection_v1alpha``: the standard gRPC services.
- ``normfold.protos.metrics``: what a server has counted, for metrics.
- ``normfold.protos.onnx_file``: the parts of an ONNX file that decide whether it is safe to load.
- ``normfold.protos.datatypes``: one table from the protocol's datatypes to NumPy, ONNX and onnxruntime.

After a change of a `.proto` file ``python -m normfold.protos.compile`` makes the compiled descriptors and the types
again. Nothing is imported here, so that it also runs if they are missing.
"""
