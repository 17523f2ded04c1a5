"""Fold every BatchNorm of a trained 1-D convolutional network, export it to ONNX with a proof, serve it over gRPC.

Importing this package is cheap; each public name is loaded on first use.

>>> import normfold
>>> normfold.__version__.count(".")
2
>>> "Client" in dir(normfold)
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from normfold import telemetry

if TYPE_CHECKING:
    from normfold.export.errors import ExportError as ExportError
    from normfold.export.fold import Fold as Fold
    from normfold.export.fold import FoldReport as FoldReport
    from normfold.export.fold import fold as fold
    from normfold.export.notebook import export_network as export_network
    from normfold.export.publishing.report import ExportReport as ExportReport
    from normfold.serving.client.async_client import AsyncClient as AsyncClient
    from normfold.serving.client.calls import Answer as Answer
    from normfold.serving.client.calls import LabelledClass as LabelledClass
    from normfold.serving.client.client import Client as Client
    from normfold.serving.client.connection import ClientTls as ClientTls
    from normfold.serving.client.errors import ClientError as ClientError
    from normfold.serving.client.metadata import ModelMetadata as ModelMetadata
    from normfold.serving.client.metadata import ServerMetadata as ServerMetadata
    from normfold.serving.client.metadata import TensorMetadata as TensorMetadata
    from normfold.serving.errors import Status as Status

    __version__: str

telemetry.switch_off()

_HOME = {
    "Answer": "normfold.serving.client.calls",
    "AsyncClient": "normfold.serving.client.async_client",
    "Client": "normfold.serving.client.client",
    "ClientError": "normfold.serving.client.errors",
    "ClientTls": "normfold.serving.client.connection",
    "ExportError": "normfold.export.errors",
    "ExportReport": "normfold.export.publishing.report",
    "Fold": "normfold.export.fold",
    "FoldReport": "normfold.export.fold",
    "LabelledClass": "normfold.serving.client.calls",
    "ModelMetadata": "normfold.serving.client.metadata",
    "ServerMetadata": "normfold.serving.client.metadata",
    "Status": "normfold.serving.errors",
    "TensorMetadata": "normfold.serving.client.metadata",
    "export_network": "normfold.export.notebook",
    "fold": "normfold.export.fold",
}

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "ClientError",
    "ClientTls",
    "ExportError",
    "ExportReport",
    "Fold",
    "FoldReport",
    "LabelledClass",
    "ModelMetadata",
    "ServerMetadata",
    "Status",
    "TensorMetadata",
    "__version__",
    "export_network",
    "fold",
]

#: The package that every name of ``normfold.export`` needs, and that a server is installed without.
_EXPORT_NEEDS = "onnx_ir"


def __getattr__(name: str) -> object:
    if name in _HOME:
        try:
            return getattr(import_module(_HOME[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("normfold", "") or "export" not in _HOME[name]:
                raise
            raise ImportError(
                f"normfold.{name} needs {error.name}, which is not installed: pip install 'normfold[export,cpu]'",
                name=error.name,
            ) from None
    if name == "__version__":
        return _version()
    raise AttributeError(f"module 'normfold' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names that this installation can load, for ``dir``, ``help`` and Tab; nothing is loaded for it."""
    from importlib.util import find_spec
    from types import ModuleType

    exports = find_spec(_EXPORT_NEEDS) is not None
    names = [name for name in __all__ if exports or ".export." not in f"{_HOME.get(name, '')}."]
    loaded = (name for name, value in globals().items() if isinstance(value, ModuleType))
    return sorted({*names, *loaded, "__all__", "__doc__", "__file__", "__name__", "__path__", "__spec__"})


def _version() -> str:
    # Imported here: importlib.metadata takes as long as all the rest of `normfold --help`.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("normfold")
    except PackageNotFoundError:  # the source tree is not installed
        return "0.0.0"
