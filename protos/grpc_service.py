"""The messages of ``inference.GRPCInferenceService``; `grpc_service.proto` says what each field means."""

from normfold.protos.pool import fill

fill(__name__, "grpc_service.proto")
