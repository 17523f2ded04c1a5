"""An InstanceNorm that normalises with its running statistics is a BatchNorm in evaluation, and is captured as one.

torch's exporter (2.13) writes it as operators that compute its parameters anew in each run.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from normfold.export.capture.program_nodes import program_nodes

__all__ = ["as_batch_norms"]


def as_batch_norms(program: ExportedProgram) -> None:
    """Call batch_norm, in place, for each instance_norm that is given statistics and takes none from its input.

    Both take the same arguments in the same order; training stands where use_input_stats does.
    """
    for node in program_nodes(program):
        if node.target is torch.ops.aten.instance_norm.default and node.args[5:6] == (False,):
            node.target = torch.ops.aten.batch_norm.default
