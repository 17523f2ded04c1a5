"""A public network of the zoo: where it comes from, how it is made, which inputs it takes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
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
    """The source of a network is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    ``shape`` is the shape of the input; a name is a dynamic dimension. Each entry of ``sizes`` gives values to the
    names. The network is exported and timed with the first entry and checked with all of them, so that a dimension
    whose value differs between the entries is really dynamic.
    """

    name: str
    #: The distribution on PyPI, or the repository, that the network comes from.
    package: str
    #: Makes the network; imports the package when it is called.
    build: Callable[[], nn.Module]
    shape: tuple[Dim, ...]
    sizes: tuple[Mapping[str, int], ...]
    #: Whether ``build`` returns a network with trained weights, which are kept as they are.
    trained: bool = False

    def dims(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the input's shape with the named dimensions taken from ``sizes``."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.shape)

    @property
    def dynamic(self) -> dict[int, str]:
        """The dynamic dimensions: axis -> name."""
        return {axis: dim for axis, dim in enumerate(self.shape) if isinstance(dim, str)}


def without_init(package: str, **attributes: Any) -> None:
    """Let submodules of ``package`` be imported without its ``__init__``, which needs packages that they do not need.

    ``attributes`` are set on the package, for submodules that read them from it; also on a package that was imported
    before, because two networks may need different attributes.
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
    """Let torchaudio and torchvision be imported where their build (CPU, CUDA) is not the build of torch.

    No network here uses their compiled kernels, but several packages import torchaudio or torchvision.
    """
    _without_kernels_of_torchaudio()
    _without_kernels_of_torchvision()


def _without_kernels_of_torchaudio() -> None:
    """torchaudio works without the file of its kernels, but not with a file that does not load."""
    missing: Any = types.ModuleType("torchaudio._extension")
    missing._IS_TORCHAUDIO_EXT_AVAILABLE = False
    missing.fail_if_no_align = lambda function: function
    sys.modules.setdefault("torchaudio._extension", missing)


def _without_kernels_of_torchvision() -> None:
    """torchvision describes its kernels to torch when it is imported, and that needs their names."""
    import torch

    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    for kernels in Path(found.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(kernels)  # names defined here as well would end the process when these come
        except OSError:  # built for another torch
            continue
        return
    text = (Path(found.origin).parent / "_meta_registrations.py").read_text()
    global _LIBRARY  # torch forgets the names with the library
    _LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in sorted({"nms", *re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', text)}):
        _LIBRARY.define(f"{name}(Tensor x) -> Tensor")


_LIBRARY: Any = None


def from_repository(repository: str, file: str) -> types.ModuleType:
    """Import one file of a repository that is not a package, from a clone in ``$ZOO_SOURCES``."""
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


def one_output(network: nn.Module, which: int | str = 0) -> nn.Module:
    """Return ``network`` with only one of its outputs, by its place or name; by default the first."""
    from torch import Tensor, nn

    class OneOutput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.network(x)[which]
            return output

    return OneOutput()
