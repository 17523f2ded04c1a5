"""The messages of ``grpc.reflection.v1alpha.ServerReflection``."""

from normfold.protos.pool import fill

fill(__name__, "reflection_v1alpha.proto")
