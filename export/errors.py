"""The errors of an export, one class for each part of the work.

    ExportError
    ├── SourceError         the factory, class, module or file that names the network
    ├── CheckpointError     the file of weights
    ├── InputSpecError      --input and --sample: names, datatypes, shapes, ranges
    ├── CaptureError        the network cannot be written as a graph
    │   └── StateError      its answer depends on earlier calls
    ├── FoldError           a graph that the folding engine must not change
    ├── VerificationError   the exported graph is not the same network within the bound
    └── PublishError        the model repository cannot take the version

Every message says what is wrong, where, what was found, what was expected, and what to do instead; it is shown to the
user unchanged.
"""

from __future__ import annotations

__all__ = [
    "CaptureError",
    "CheckpointError",
    "ExportError",
    "FoldError",
    "InputSpecError",
    "PublishError",
    "SourceError",
    "StateError",
    "VerificationError",
]


class ExportError(Exception):
    """Any problem with the user's input or environment that stops an export; not a bug of this program."""


class SourceError(ExportError):
    """The network named on the command line cannot be found, imported or built."""


class CheckpointError(ExportError):
    """The file of weights is missing, damaged, unsafe to read, or belongs to another network."""


class InputSpecError(ExportError):
    """An input is described in a way that cannot be read, or that the network does not take."""


class CaptureError(ExportError):
    """The network runs, but cannot be captured as a graph that computes the same."""


class StateError(CaptureError):
    """The network keeps something from one call to the next, which a graph cannot hold."""


class FoldError(ExportError):
    """The graph holds something that the folding engine must not change."""


class VerificationError(ExportError):
    """The exported graph differs from the network by more than the bound; nothing was published.

    output is the name of the worst output; max_abs_diff and bound are in the units of that output.
    """

    def __init__(self, message: str, *, output: str = "", max_abs_diff: float = float("nan"), bound: float = 0.0):
        super().__init__(message)
        self.output = output
        self.max_abs_diff = max_abs_diff
        self.bound = bound


class PublishError(ExportError):
    """The model repository cannot take this version: a name, a permission, a version that exists, a full disk."""
