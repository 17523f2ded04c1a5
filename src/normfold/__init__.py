"""Fold every BatchNorm of a trained 1-D convolutional network, export it to ONNX with a proof, serve it over gRPC.

Importing this package is cheap; each public name is loaded on first use.

>>> import normfold
>>> normfold.__version__.count(".")
2
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normfold.export.fold import FoldReport as FoldReport
    from normfold.export.fold import fold as fold
    from normfold.serving.client import AsyncClient as AsyncClient
    from normfold.serving.client import Client as Client

_HOME = {
    "AsyncClient": "normfold.serving.client",
    "Client": "normfold.serving.client",
    "FoldReport": "normfold.export.fold",
    "fold": "normfold.export.fold",
}

__all__ = ["AsyncClient", "Client", "FoldReport", "__version__", "fold"]

try:
    __version__ = version("normfold")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'normfold' has no attribute {name!r}")
