"""The messages of ``normfold.Metrics``: what a server has counted."""

from normfold.protos.pool import fill

fill(__name__, "metrics.proto")
