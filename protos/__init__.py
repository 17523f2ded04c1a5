"""The wire protocol: `.proto` files of our own and the message classes made from them at import.

- ``normfold.protos.grpc_service``: the Open Inference Protocol with Triton's extensions.
- ``normfold.protos.model_config``: ``ModelConfig``, the content of ``config.pbtxt``.
- ``normfold.protos.health``, ``reflection_v1``, ``reflection_v1alpha``: the standard gRPC services.
- ``normfold.protos.onnx_file``: what of an ONNX file decides whether it is safe to load.
- ``normfold.protos.datatypes``: one table from the protocol's datatypes to NumPy, ONNX and onnxruntime.

``python -m normfold.protos.compile`` remakes the compiled descriptors and the types after a change of a `.proto` file;
nothing is imported here, so that it runs while they are missing.
"""
