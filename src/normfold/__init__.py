"""Fold every BatchNorm of a trained 1-D convolutional network, export it to ONNX with a proof, serve it over gRPC.

Importing this package is cheap; each public name is loaded on first use.

>>> import normfold
>>> normfold.__version__.count(".")
2
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from normfold import telemetry

if TYPE_CHECKING:
    from normfold.export.fold import FoldReport as FoldReport
    from normfold.export.fold import fold as fold
    from normfold.serving.client.client import AsyncClient as AsyncClient
    from normfold.serving.client.client import Client as Client

    __version__: str

telemetry.switch_off()

_HOME = {
    "AsyncClient": "normfold.serving.client.client",
    "Client": "normfold.serving.client.client",
    "FoldReport": "normfold.export.fold",
    "fold": "normfold.export.fold",
}

__all__ = ["AsyncClient", "Client", "FoldReport", "__version__", "fold"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'normfold' has no attribute {name!r}")


def _version() -> str:
    # Imported here: importlib.metadata takes as long as all the rest of `normfold --help`.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("normfold")
    except PackageNotFoundError:  # the source tree is not installed
        return "0.0.0"
