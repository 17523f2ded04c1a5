"""What the zoo knows of one public network: where it comes from, how it is made, what goes in."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Dim = int | str


class SourceMissingError(Exception):
    """A network's source is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    ``shape`` is the input's, with dynamic dimensions as names. ``sizes`` gives the names' values: the first entry is
    exported and timed, every entry is checked; so a name whose value changes there is really dynamic.
    """

    name: str
    #: The distribution on PyPI, or the repository, that the network comes from.
    package: str
    #: Makes the network; imports its package when called.
    build: Callable[[], nn.Module]
    shape: tuple[Dim, ...]
    sizes: tuple[Mapping[str, int], ...]
    #: True where ``build`` returns trained weights, which are kept as they are.
    trained: bool = False

    def dims(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the input's shape with the named dimensions taken from ``sizes``."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.shape)

    @property
    def dynamic(self) -> dict[int, str]:
        """Axis and name of each dynamic dimension."""
        return {axis: dim for axis, dim in enumerate(self.shape) if isinstance(dim, str)}


def without_init(package: str, **attributes: Any) -> None:
    """Let submodules of ``package`` be imported without running its ``__init__``, which wants more than they do.

    ``attributes`` are set on the bare package, for submodules that read them from it, on one that is there already,
    too: two networks may want different ones.
    """
    if package in sys.modules:
        vars(sys.modules[package]).update(attributes)
        return
    parent, _, _ = package.rpartition(".")
    if parent:
        without_init(parent)
        search: Any = sys.modules[parent].__path__
    else:
        search = None
    spec = importlib.machinery.PathFinder.find_spec(package, search)
    if spec is None or spec.submodule_search_locations is None:
        raise SourceMissingError(f"{package} is not installed: make test-zoo installs it")
    bare = types.ModuleType(package)
    bare.__path__ = list(spec.submodule_search_locations)
    bare.__spec__ = spec
    vars(bare).update(attributes)
    sys.modules[package] = bare


def without_kernels() -> None:
    """Let torchaudio be imported beside a torch of another build (CPU, CUDA) than its own.

    It takes its compiled kernels for optional where the file is missing, but not where the file does not load. No
    network here uses them; several packages import torchaudio.
    """
    missing: Any = types.ModuleType("torchaudio._extension")
    missing._IS_TORCHAUDIO_EXT_AVAILABLE = False
    missing.fail_if_no_align = lambda function: function
    sys.modules.setdefault("torchaudio._extension", missing)


def from_repository(repository: str, file: str) -> types.ModuleType:
    """Import one file of a repository that is no package, from a clone under ``$ZOO_SOURCES``."""
    root = os.environ.get("ZOO_SOURCES", "")
    folder = repository.rpartition("/")[2]
    path = Path(root) / folder / file
    if not root or not path.is_file():
        raise SourceMissingError(
            f"no {file} of {repository}: git clone https://github.com/{repository} $ZOO_SOURCES/{folder}"
        )
    spec = importlib.util.spec_from_file_location(f"zoo_{folder.replace('.', '_')}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_output(network: nn.Module, which: int = 0) -> nn.Module:
    """Return ``network`` with only one of the outputs it gives, the first unless told."""
    from torch import Tensor, nn

    class OneOutput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.network(x)[which]
            return output

    return OneOutput()
