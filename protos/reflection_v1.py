"""The messages of ``grpc.reflection.v1.ServerReflection``."""

from normfold.protos.pool import fill

fill(__name__, "reflection_v1.proto")
