"""The messages of ``grpc.health.v1.Health``."""

from normfold.protos.pool import fill

fill(__name__, "health.proto")
